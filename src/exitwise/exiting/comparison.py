"""Measures beside one another along the curve of accuracy against cost, on held-out samples alone. Imports no torch.

Each sample is read by measures that were not fitted on it, and leaves by thresholds that were not found on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from exitwise.catalogue.measures import MEASURES, USUAL_MEASURE
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.calibration import members
from exitwise.exiting.fitting import fit_and_read, folds
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Family
from exitwise.shapes import Bool, Float, Float64, Int

BUDGETS, RESAMPLES, AT_ONCE = 21, 1000, 50
"""Costs evenly from the cheapest exit's to the dearest's; draws of the samples, and how many of them at once."""

MEMBERS, REACH = 200, 12
"""Thresholds of a family to choose from, and the largest log p among them."""


class Gain(NamedTuple):
    """A difference in accuracy, as a share, and its 95 % interval over samples."""

    mean: float
    low: float
    high: float


class MeasureGain(NamedTuple):
    """A measure beside the usual one.

    Attributes:
        measure: its name.
        accuracy: mean over the budgets.
        whole, cheapest, dearest: what it gains over all budgets, over the cheapest quarter, and over the dearest.
    """

    measure: str
    accuracy: float
    whole: Gain
    cheapest: Gain
    dearest: Gain


def measure_gains(
    logits: Float[Array, "samples exits classes"],
    targets: Int[Array, "samples"],
    exit_costs: Sequence[float],
    *,
    temperature: bool = False,
    seed: int = 0,
) -> list[MeasureGain]:
    """Return what each measure of the catalogue gains over the usual one, which comes first.

    Intervals are percentiles over samples drawn anew, the same ones for both measures.

    Args:
        logits: of held-out samples.
        targets: class indices.
        exit_costs: cost of leaving at each exit, cheap to dear.
        temperature: whether measures that fit none themselves get a temperature per exit.
        seed: of the parts and the draws.

    Raises:
        UserError: for fewer than two samples.
    """
    logits, targets = as_numpy(logits), as_numpy(targets)
    names = [USUAL_MEASURE, *(name for name in MEASURES if name != USUAL_MEASURE)]
    curves = [_Curve.of(name, logits, targets, exit_costs, temperature, seed) for name in names]
    grid = np.linspace(exit_costs[0], exit_costs[-1], BUDGETS)
    whole = np.full((1, len(targets)), 1.0)
    usual, drawn = curves[0], list(_draws(len(targets), seed))
    found = []
    for name, curve in zip(names, curves, strict=True):
        mean = (curve.along(grid, whole) - usual.along(grid, whole))[0]
        spread = np.concatenate([curve.along(grid, each) - usual.along(grid, each) for each in drawn])
        accuracy = float(curve.along(grid, whole).mean())
        found.append(MeasureGain(name, accuracy, *(_gain(mean, spread, part) for part in _parts())))
    return found


def best_measure(gains: Sequence[MeasureGain], samples: int) -> MeasureGain:
    """Return the one that gains most of those whose interval lies above zero, or else the first, the usual one.

    It must do so by more than one of the samples: drawing few samples anew that differ says nothing of others.
    """
    sure = (each for each in gains if each.whole.low > 1 / samples)
    return max(sure, key=lambda each: each.whole.mean, default=gains[0])


class _Curve(NamedTuple):
    """Of each sample at each budget: whether the answer was right, and what it cost."""

    right: Bool[np.ndarray, "samples budgets"]
    cost: Float64[np.ndarray, "samples budgets"]

    @classmethod
    def of(
        cls,
        name: str,
        logits: Float[np.ndarray, "samples exits classes"],
        targets: Int[np.ndarray, "samples"],
        exit_costs: Sequence[float],
        temperature: bool,
        seed: int,
    ) -> _Curve:
        measure, confidences, predictions = fit_and_read(
            name, logits, targets, exit_costs, temperature=temperature, seed=seed
        )
        costs = np.array(exit_costs, dtype=np.float64)
        exits = np.zeros((len(targets), BUDGETS), dtype=np.int64)
        for part in folds(len(targets), seed):
            others = np.delete(confidences, part, axis=0)
            for place, policy in enumerate(_policies(others, costs, measure.family)):
                exits[part, place] = policy.exit_of(confidences[part])
        return cls(np.take_along_axis(predictions, exits, 1) == targets[:, None], costs[exits])

    def along(
        self, grid: Float64[np.ndarray, "grid"], counts: Float64[np.ndarray, "draws samples"]
    ) -> Float64[np.ndarray, "draws grid"]:
        """Return the accuracy at each cost of the grid, where samples count so often."""
        sizes = counts.sum(axis=1, keepdims=True)
        costs, accuracies = counts @ self.cost / sizes, counts @ self.right / sizes
        order = np.argsort(costs, axis=1, kind="stable")
        sorted_ = (np.take_along_axis(each, order, 1) for each in (costs, accuracies))
        return np.stack([np.interp(grid, *pair) for pair in zip(*sorted_, strict=True)])


def _policies(
    confidences: Float[np.ndarray, "samples exits"], costs: Float64[np.ndarray, "exits"], family: Family
) -> list[ExitPolicy]:
    """Return thresholds for each budget: the dearest members of the family that it allows."""
    policies = [policy for policy, _ in members(confidences, MEMBERS, REACH, family)]
    spent = np.array([costs[policy.exit_of(confidences)].mean() for policy in policies])
    order = np.argsort(spent, kind="stable")
    budgets = np.linspace(costs[0], costs[-1], BUDGETS)
    places = np.searchsorted(spent[order], budgets * (1 + 1e-9), side="right") - 1
    return [policies[order[max(place, 0)]] for place in places.tolist()]


def _draws(samples: int, seed: int) -> Iterator[Float64[np.ndarray, "draws samples"]]:
    """Yield how often each sample is drawn."""
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // AT_ONCE):
        yield generator.multinomial(samples, np.full(samples, 1 / samples), size=AT_ONCE).astype(np.float64)


def _parts() -> tuple[slice, slice, slice]:
    """Return which budgets are all, the cheapest quarter and the dearest."""
    quarter = BUDGETS // 4 + 1
    return slice(None), slice(quarter), slice(-quarter, None)


def _gain(mean: Float64[np.ndarray, "grid"], spread: Float64[np.ndarray, "draws grid"], part: slice) -> Gain:
    low, high = np.percentile(spread[:, part].mean(axis=1), [2.5, 97.5]).tolist()
    return Gain(float(mean[part].mean()), low, high)
