"""Outputs of a network at all exits, and curves of accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from exitwise.errors import UserError
from exitwise.exiting.arrays import as_numpy
from exitwise.exiting.measures import Measure
from exitwise.exiting.outputs import Outputs
from exitwise.exiting.policy import MAX_PROBABILITY
from exitwise.kernels.inputs import Inputs, moved
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

EVALUATION_BATCH = 256
"""Images at a time, wherever no gradient is needed."""


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
