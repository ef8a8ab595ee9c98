"""Thresholds for a compute budget, found on recorded confidences of held-out data. Imports no torch.

Knows neither networks nor where the data came from; never to be called with test data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exitwise.budgets import (
    bisect_log_p,
    check_budget,
    check_drop,
    check_proportions,
    exit_count,
    geometric_proportions,
)
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import leaves
from exitwise.shapes import Bool, Float


def calibrate_proportions(confidences: Float[Array, "samples exits"], proportions: Sequence[float]) -> ExitPolicy:
    """Return thresholds under which the calibration samples leave in the given proportions.

    At exit k, with m = floor(N * q_k), the threshold is the confidence of the m-th most confident sample
    still inside; equal confidences leave together. Where m is 0, or fewer than m are inside, nobody can
    leave. (docs/method.md, "Calibration".)

    Args:
        confidences: of calibration samples.
        proportions: a share for each exit; they sum to 1.

    Raises:
        ValueError: for wrong proportions, or without samples.
    """
    confidences = as_numpy(confidences)
    n, exits = confidences.shape
    if n == 0:
        raise ValueError("calibration needs at least one sample; got none")
    thresholds: list[float | None] = []
    inside = np.arange(n)
    for k, proportion in enumerate(check_proportions(proportions, exits)[:-1]):
        count = exit_count(n, proportion)
        if count == 0 or len(inside) < count:
            thresholds.append(None)
            continue
        candidates = confidences[inside, k]
        place = len(inside) - count
        sure = np.where(np.isnan(candidates), -np.inf, candidates)  # what is not a number never leaves
        threshold = np.partition(sure, place)[place].item()
        thresholds.append(threshold if threshold > -np.inf else None)
        inside = inside[~leaves(candidates, k, (*thresholds, None))]
    return ExitPolicy(thresholds)


def calibrate_macs(
    confidences: Float[Array, "samples exits"], exit_macs: Sequence[float], macs: float
) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds of the geometric family that spend as much of a budget as they can without exceeding it.

    Args:
        confidences: of calibration samples.
        exit_macs: cost of leaving at each exit, cheap to dear.
        macs: mean multiply-accumulates per sample, not to be exceeded on the calibration samples.

    Returns:
        The policy, and the proportions it was calibrated for.

    Raises:
        ValueError: if the budget lies below the first exit's cost or above the full network's.
    """
    check_budget(macs, exit_macs)
    confidences = as_numpy(confidences)
    exits = len(exit_macs)
    costs = np.array(exit_macs, dtype=np.float64)

    def affordable(log_p: float) -> bool:
        policy = calibrate_proportions(confidences, geometric_proportions(log_p, exits))
        return bool(costs[policy.exit_of(confidences)].mean() <= macs * (1 + 1e-12))

    proportions = geometric_proportions(bisect_log_p(affordable), exits)
    return calibrate_proportions(confidences, proportions), proportions


ACCURACY_STEPS = 400
"""Members of the geometric family that are tried for an accuracy."""


def calibrate_accuracy(
    confidences: Float[Array, "samples exits"],
    correct: Bool[Array, "samples exits"],
    exit_macs: Sequence[float],
    max_drop: float,
) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds of the geometric family that cost least among those that lose no more accuracy than allowed.

    Args:
        confidences: of calibration samples.
        correct: whether each exit is right.
        exit_macs: cost of leaving at each exit, cheap to dear.
        max_drop: by how much accuracy on the calibration samples may fall below the last exit's, in [0, 1].

    Returns:
        The policy, and the proportions it was calibrated for. What it loses on other samples may be more.

    Raises:
        ValueError: for a drop outside [0, 1].
    """
    check_drop(max_drop)
    confidences, correct = as_numpy(confidences), as_numpy(correct)
    exits = len(exit_macs)
    costs = np.array(exit_macs, dtype=np.float64)
    lowest = correct[:, -1].mean() - max_drop - 1e-12
    everything_to_the_end = [*[0.0] * (exits - 1), 1.0]
    best = calibrate_proportions(confidences, everything_to_the_end), everything_to_the_end
    least = costs[-1]
    for log_p in np.linspace(-8, 8, ACCURACY_STEPS, dtype=np.float32).tolist():
        proportions = geometric_proportions(log_p, exits)
        policy = calibrate_proportions(confidences, proportions)
        taken = policy.exit_of(confidences)
        accuracy = np.take_along_axis(correct, taken[:, None], 1).mean()
        cost = costs[taken].mean()
        if accuracy >= lowest and cost < least:
            best, least = (policy, proportions), cost
    return best
