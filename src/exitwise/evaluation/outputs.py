"""Anytime and budgeted results from recorded outputs: what would leave where, at which accuracy and cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from exitwise.budgets import AUTHORS_BUDGETS, exit_proportions
from exitwise.errors import UserError
from exitwise.exiting.arrays import Array, as_numpy, largest
from exitwise.exiting.calibration import calibrate_proportions
from exitwise.exiting.measures import Measure
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy
from exitwise.kernels.inputs import Inputs, moved
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

EVALUATION_BATCH = 256
"""Images at a time, wherever no gradient is needed."""


class Left(NamedTuple):
    """How N samples left, one entry each: class predicted, exit taken (0-based), confidence there."""

    predictions: NDArray[np.int64]
    exits: NDArray[np.int64]
    confidences: NDArray[Any]


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
        return self.predictions == self.targets[:, None]

    def under(self, policy: ExitPolicy) -> Left:
        """Return how the samples leave under a policy."""
        exits = policy.exit_of(self.confidences)
        confidences, predictions = (np.take_along_axis(each, exits[:, None], 1)[:, 0] for each in self[:2])
        return Left(predictions, exits, confidences)


class CurvePoint(NamedTuple):
    """One budget of a curve: its parameter p, the calibrated policy, and what it does on two sets of outputs."""

    p: float
    policy: ExitPolicy
    calibration: OperatingPoint
    test: OperatingPoint


def collect_outputs(
    model: StagedModel,
    batches: Iterable[tuple[Inputs, Tensor]],
    device: torch.device | str = "cpu",
    measure: Measure = MAX_PROBABILITY,
) -> Outputs:
    """Run all exits on every batch, in eval mode, and return what they said as NumPy arrays.

    Raises:
        UserError: if there is no batch.
    """
    parts = [Outputs.from_logits(logits, targets, measure) for logits, targets in _logits(model, batches, device)]
    return Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def collect_logits(
    model: StagedModel, batches: Iterable[tuple[Inputs, Tensor]], device: torch.device | str = "cpu"
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits (N, K, C) of all exits and targets (N), as :func:`collect_outputs` would read them."""
    parts = [(as_numpy(logits), as_numpy(targets)) for logits, targets in _logits(model, batches, device)]
    logits, targets = map(np.concatenate, zip(*parts, strict=True))
    return logits, targets


def _logits(
    model: StagedModel, batches: Iterable[tuple[Inputs, Tensor]], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    empty = True
    with torch.inference_mode(), evaluating(model):
        for inputs, targets in batches:
            empty = False
            yield torch.stack(model(moved(inputs, device)), dim=1), targets
    if empty:
        raise UserError("expected at least one batch to evaluate; got none")


def right_alone(logits: NDArray[Any], targets: NDArray[np.int64], exit: int) -> NDArray[np.bool_]:
    """Return on which of N samples an exit's own answer is right, from logits (N, K, C) and targets (N)."""
    right: NDArray[np.bool_] = logits[:, exit].argmax(-1) == targets
    return right


def anytime(outputs: Outputs) -> list[float]:
    """Return the accuracy of each exit on all samples, K numbers in [0, 1]."""
    return outputs.correct.mean(axis=0).tolist()


def operate(outputs: Outputs, policy: ExitPolicy, exit_macs: Sequence[float]) -> OperatingPoint:
    """Simulate a policy on recorded outputs."""
    left = outputs.under(policy)
    shares = np.bincount(left.exits, minlength=policy.exits) / len(left.exits)
    accuracy = (left.predictions == outputs.targets).mean()
    return OperatingPoint(float(accuracy), float((shares * np.array(exit_macs)).sum()), tuple(shares.tolist()))


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


def common_grid(costs: Iterable[Sequence[float]], points: int = 50) -> np.ndarray:
    """Evenly spaced costs that all curves span: from the dearest first to the cheapest last of their points."""
    costs = list(costs)
    return np.linspace(max(map(min, costs)), min(map(max, costs)), points)


def accuracy_at(costs: Sequence[float], accuracies: Sequence[float], grid: np.ndarray) -> np.ndarray:
    """Accuracy at the costs of ``grid``, in a straight line between the points of a curve."""
    order = np.argsort(costs, kind="stable")
    return np.interp(grid, np.asarray(costs)[order], np.asarray(accuracies)[order])


def mean_and_half_width(values: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean over the first axis, and half the width of Student's interval for it; None for that of a single
    value.

    Args:
        values: n independent values, or arrays of them, (n, ...).
        level: of the interval. Needs SciPy.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    mean, n = values.mean(axis=0), len(values)
    if n == 1:
        return mean, None
    return mean, t.ppf((1 + level) / 2, n - 1) * values.std(axis=0, ddof=1) / n**0.5
