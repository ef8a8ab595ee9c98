"""How accurate networks will be after fine-tuning: a Gaussian belief in log-odds, exact and small. Imports no torch.

    log-odds of accuracy after fine-tuning:  y_i = m + b (x_i - x) + r_i     x_i: of accuracy on ImageNet
    log-odds of a probe's accuracy:          z_i = y_i - g - h_i + noise     noise: from the images, paired

m, b, g are shared by all networks, r_i and h_i are each network's own. Their spreads below are assumptions, wide on
purpose: what a probe leaves out differs from task to task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS, LOWEST, HIGHEST = 20_000, 2.5, 97.5

LEVEL, SLOPE, GAIN = (1.7, 1.2), (0.75, 0.4), (0.4, 0.35)
"""Mean and spread of m, b and g: accuracy of 35 to 98 % before anything is known; a slope between none and that of
ImageNet itself; odds of an error that fine-tuning multiplies by 0.34 to 1.33, mostly 0.67."""

OWN, OWN_GAIN, UNKNOWN = 0.25, 0.1, 0.4
"""Spreads of r_i and h_i; of r_i where accuracy on ImageNet is not known, or only on larger images."""

USUAL = 0.78
"""Accuracy on ImageNet at which m is the level, and which is taken where it is not known."""


class Option(NamedTuple):
    """One of those compared.

    Attributes:
        network: index of the network.
        gain: log-odds that leaving early gives (or, below 0, costs) on its probe; 0 for the full network.
        spread: of that.
    """

    network: int
    gain: float = 0.0
    spread: float = 0.0


def log_odds(share: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the logarithm of p / (1 - p)."""
    share = np.asarray(share, dtype=np.float64)
    return np.log(share) - np.log1p(-share)


def share_right(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of each column that is right, away from 0 and 1 by half an image."""
    shares: NDArray[np.float64] = (correct.sum(0) + 0.5) / (len(correct) + 1)
    return shares


def paired_noise(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the covariance of log-odds of the columns' means, from the images' own differences, (columns, columns)."""
    shares = share_right(correct)
    scale = shares * (1 - shares)
    noise: NDArray[np.float64] = np.atleast_2d(np.cov(correct.astype(np.float64).T)) / len(correct)
    return noise / np.outer(scale, scale)


def early(network: int, full: NDArray[np.bool_], left: NDArray[np.bool_]) -> Option:
    """Return what leaving early gives or costs on a probe's images, as an option.

    Args:
        network: index of the network.
        full: whether its last exit is right on each image.
        left: whether the exit that each image leaves at is.
    """
    both = np.stack([full, left], 1)
    shares, noise = log_odds(share_right(both)), paired_noise(both)
    variance = noise[0, 0] + noise[1, 1] - 2 * noise[0, 1]
    return Option(network, float(shares[1] - shares[0]), float(np.sqrt(max(variance, 0) + OWN_GAIN**2)))


def believe(
    imagenet: Sequence[float | None],
    probed: Sequence[int],
    correct: NDArray[np.bool_] | None,
    options: Sequence[Option],
    seed: int = 0,
    smaller: Sequence[bool] | None = None,
) -> NDArray[np.float64]:
    """Return draws of the accuracies of options after fine-tuning, (draws, options).

    Args:
        imagenet: each network's accuracy on ImageNet, a share; None where unknown.
        probed: which of the networks were probed.
        correct: whether their probes are right on each of the same images, held out, (images, probed).
        options: what accuracies are wanted of.
        seed: of the draws.
        smaller: whether each network gets smaller images than those that its accuracy on ImageNet is of; none by
            default.
    """
    count = len(imagenet)
    x = log_odds(np.array([USUAL if each is None else each for each in imagenet])) - log_odds(USUAL)
    smaller = smaller or [False] * count
    own = [UNKNOWN if each is None or less else OWN for each, less in zip(imagenet, smaller, strict=True)]
    means = np.array([LEVEL[0], SLOPE[0], GAIN[0], *[0.0] * (2 * count)])
    covariance = np.diag(np.square([LEVEL[1], SLOPE[1], GAIN[1], *own, *[OWN_GAIN] * count]))
    tuned = np.column_stack([np.ones(count), x, np.zeros(count), np.eye(count), np.zeros((count, count))])
    if correct is not None and len(probed):
        probes = tuned[list(probed)].copy()
        probes[:, 2] = -1
        probes[np.arange(len(probed)), 3 + count + np.array(probed)] = -1
        seen = probes @ covariance @ probes.T + paired_noise(correct)
        weight = covariance @ probes.T @ np.linalg.pinv(seen)
        means = means + weight @ (log_odds(share_right(correct)) - probes @ means)
        covariance = covariance - weight @ probes @ covariance
    generator = np.random.default_rng(seed)
    networks = generator.multivariate_normal(tuned @ means, tuned @ covariance @ tuned.T, DRAWS, method="svd")
    gains = generator.normal(size=(DRAWS, len(options))) * [option.spread for option in options]
    found = networks[:, [option.network for option in options]] + gains + [option.gain for option in options]
    return 1 / (1 + np.exp(-found))


class Interval(NamedTuple):
    """Mean and 95 % interval, shares."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: NDArray[np.float64]) -> Interval:
        """Return those of draws."""
        low, high = np.percentile(draws, [LOWEST, HIGHEST]).tolist()
        return cls(float(draws.mean()), low, high)
