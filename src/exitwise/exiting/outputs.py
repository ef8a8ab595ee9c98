"""Recorded outputs of all exits: who would leave where, at which accuracy and cost. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.budgets import AUTHORS_BUDGETS, exit_proportions
from exitwise.exiting.arrays import Array, as_numpy, largest
from exitwise.exiting.calibration import calibrate_proportions
from exitwise.exiting.measures import Measure
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy


class Left(NamedTuple):
    """How N samples left, one entry each: class predicted, exit taken (0-based), confidence there; and whether they are
    answered, None where all are."""

    predictions: NDArray[np.int64]
    exits: NDArray[np.int64]
    confidences: NDArray[Any]
    answered: NDArray[np.bool_] | None = None


class Outputs(NamedTuple):
    """The answers of a network to N samples at all of its K exits.

    Attributes:
        confidences: by the measure they were read with, (N, K).
        predictions: class index, int64 (N, K).
        targets: true class, int64 (N).
    """

    confidences: NDArray[Any]
    predictions: NDArray[np.int64]
    targets: NDArray[np.int64]

    @classmethod
    def from_logits(cls, logits: Array, targets: Array, measure: Measure = MAX_PROBABILITY) -> Outputs:
        """Return them from logits (N, K, C) and targets (N), arrays or tensors."""
        return cls(*map(as_numpy, (*measure.read_all(logits), targets)))

    @classmethod
    def from_probabilities(cls, probabilities: Array, targets: Array) -> Outputs:
        """Return them from softmax outputs (N, K, C) and targets (N), arrays or tensors."""
        return cls(*map(as_numpy, (*largest(probabilities), targets)))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each exit is right, bool (N, K)."""
        right: NDArray[np.bool_] = self.predictions == self.targets[:, None]
        return right

    def under(self, policy: ExitPolicy) -> Left:
        """Return how the samples leave under a policy."""
        exits = policy.exit_of(self.confidences)
        confidences, predictions = (np.take_along_axis(each, exits[:, None], 1)[:, 0] for each in self[:2])
        answered = None if policy.abstain_below is None else policy.answered(confidences)
        return Left(predictions, exits, confidences, answered)


def right_alone(logits: NDArray[Any], targets: NDArray[np.int64], exit: int) -> NDArray[np.bool_]:
    """Return on which of N samples an exit's own answer is right, from logits (N, K, C) and targets (N)."""
    right: NDArray[np.bool_] = logits[:, exit].argmax(-1) == targets
    return right


def anytime(outputs: Outputs) -> list[float]:
    """Return the accuracy of each exit on all samples, K numbers in [0, 1]."""
    accuracies: list[float] = outputs.correct.mean(axis=0).tolist()
    return accuracies


def operate(outputs: Outputs, policy: ExitPolicy, exit_macs: Sequence[float]) -> OperatingPoint:
    """Simulate a policy on recorded outputs."""
    left = outputs.under(policy)
    shares = np.bincount(left.exits, minlength=policy.exits) / len(left.exits)
    accuracy = (left.predictions == outputs.targets).mean()
    return OperatingPoint(float(accuracy), float((shares * np.array(exit_macs)).sum()), tuple(shares.tolist()))


class CurvePoint(NamedTuple):
    """One budget of a curve: its parameter p, the calibrated policy, and what it does on two sets of outputs."""

    p: float
    policy: ExitPolicy
    calibration: OperatingPoint
    test: OperatingPoint


def budgeted_curve(
    calibration: Outputs, test: Outputs, exit_macs: Sequence[float], budgets: Sequence[float] = AUTHORS_BUDGETS
) -> list[CurvePoint]:
    """Calibrate for each budget parameter p on one set of outputs, and report both sets under it.

    Args:
        calibration, test: recorded outputs of disjoint data.
        exit_macs: cost of leaving at each exit.
        budgets: values of p; by default the authors' 39.
    """
    points = []
    for p in budgets:
        policy = calibrate_proportions(calibration.confidences, exit_proportions(p, len(exit_macs)))
        points.append(CurvePoint(p, policy, operate(calibration, policy, exit_macs), operate(test, policy, exit_macs)))
    return points
