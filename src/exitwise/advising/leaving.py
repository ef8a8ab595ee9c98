"""What a probe's exits would save: thresholds found on some of its held-out samples, tried on the others. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.catalogue.measures import USUAL_MEASURE
from exitwise.exiting.calibration import MARGIN, calibrate_accuracy, calibrate_macs
from exitwise.exiting.fitting import fit_and_read, folds
from exitwise.exiting.policy import ExitPolicy

MAX_DROP = 0.01
"""Accuracy that exits may lose where no budget forces them to leave."""


class Leaving(NamedTuple):
    """How samples leave, each by thresholds that were found on others.

    Attributes:
        correct: whether the exit that each leaves at is right, (N).
        shares: of the samples, at each exit.
    """

    correct: NDArray[np.bool_]
    shares: tuple[float, ...]

    def mean(self, costs: Sequence[float]) -> float:
        """Return the mean of a cost per exit."""
        return float(np.dot(self.shares, costs))


def leaving(
    logits: NDArray[Any],
    targets: NDArray[np.int64],
    costs: Sequence[float],
    budget: float | None = None,
    seed: int = 0,
) -> Leaving:
    """Return how samples leave within a budget or, without one, such that at most a hundredth of accuracy is lost.

    Args:
        logits: (N, K, C), of heads that were not fitted on these samples.
        targets: class indices.
        costs: of leaving at each exit, cheap to dear.
        budget: mean cost per sample, between the first exit's and the last one's.
        seed: of the parts.
    """
    fitted = fit_and_read(USUAL_MEASURE, logits, targets, costs, seed=seed)
    right = fitted.predictions == targets[:, None]
    taken = np.zeros(len(targets), dtype=np.int64)
    for part in folds(len(targets), seed):
        others = np.setdiff1d(np.arange(len(targets)), part)
        taken[part] = _policy(fitted.confidences[others], right[others], costs, budget).exit_of(
            fitted.confidences[part]
        )
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Leaving(np.take_along_axis(right, taken[:, None], 1)[:, 0], tuple(shares.tolist()))


def _policy(
    confidences: NDArray[Any], right: NDArray[np.bool_], costs: Sequence[float], budget: float | None
) -> ExitPolicy:
    if budget is None:
        return calibrate_accuracy(confidences, right, costs, MAX_DROP, margin=MARGIN)[0]
    return calibrate_macs(confidences, costs, budget)[0]
