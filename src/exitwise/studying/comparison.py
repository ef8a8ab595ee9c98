"""Variants beside a baseline: paired differences with intervals, how sure they are, and which variant to use.

Works on the records of runs; knows neither networks nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from exitwise.evaluation.outputs import accuracy_at, common_grid, mean_and_half_width
from exitwise.studying.plan import Equal, Place, Plan

PLACES: tuple[Place, ...] = get_args(Place)
LEVEL = 0.05
"""A difference is called one where chance alone would show it, or a larger one, less often than this."""

Record = Mapping[str, Any]
"""A run as ``study.json`` has it."""


class Pair(NamedTuple):
    """Which lengths of training are compared.

    Attributes:
        recipe, variant: of what.
        equal: what is equal.
        updates, baseline_updates: of either.
    """

    recipe: str
    variant: str
    equal: Equal
    updates: int
    baseline_updates: int


@dataclass(frozen=True)
class Gain:
    """What a variant gains over the baseline at one place, in points of accuracy.

    Attributes:
        pair: what is compared.
        place: where.
        mean: over seeds.
        half_width: of the 95 % interval (Student's, of paired differences); None of a single seed.
        seeds: how many.
        p: how often chance would show as much, after Holm's correction for all comparisons with the same thing equal;
            None of a single seed.
    """

    pair: Pair
    place: Place
    mean: float
    half_width: float | None
    seeds: int
    p: float | None

    @property
    def sure(self) -> bool:
        """Return whether it is more than chance."""
        return self.p is not None and self.p < LEVEL


def gains(pairs: Sequence[Pair], runs: Sequence[Record], baseline: str) -> list[Gain]:
    """Return the gains at all places of all pairs that have a seed in common, corrected for their number (Holm)."""
    found: list[tuple[Pair, Place, np.ndarray]] = []
    for pair in pairs:
        mine = _by_seed(runs, pair.recipe, pair.variant, pair.updates)
        theirs = _by_seed(runs, pair.recipe, baseline, pair.baseline_updates)
        seeds = sorted(mine.keys() & theirs.keys())
        if seeds:
            grid = common_grid([[line[1] for line in run["curve"]] for s in seeds for run in (mine[s], theirs[s])])
            differences = [_places(mine[seed], grid) - _places(theirs[seed], grid) for seed in seeds]
            found += [(pair, place, column) for place, column in zip(PLACES, np.transpose(differences), strict=True)]
    corrected: dict[int, float] = {}
    for equal in get_args(Equal):
        tested = {k: p for k, (pair, _, d) in enumerate(found) if pair.equal == equal and (p := chance(d)) is not None}
        corrected |= dict(zip(tested, holm(list(tested.values())), strict=True))
    return [_gain(pair, place, each, corrected.get(k)) for k, (pair, place, each) in enumerate(found)]


def _gain(pair: Pair, place: Place, differences: np.ndarray, p: float | None) -> Gain:
    mean, half = mean_and_half_width(differences)
    return Gain(pair, place, float(mean), None if half is None else float(half), len(differences), p)


def _by_seed(runs: Sequence[Record], recipe: str, variant: str, updates: int) -> dict[int, Record]:
    key = (recipe, variant, updates)
    return {run["seed"]: run for run in runs if (run["recipe"], run["variant"], run["updates"]) == key}


def _places(run: Record, grid: np.ndarray) -> np.ndarray:
    """Return the accuracy of a run at each place, in percent."""
    _, macs, accuracies = zip(*run["curve"], strict=True)
    curve = accuracy_at(macs, accuracies, grid)
    quarter = -(-len(grid) // 4)
    return 100 * np.array(
        [run["exits"][0], run["exits"][-1], curve[:quarter].mean(), curve[-quarter:].mean(), curve.mean()]
    )


def chance(differences: np.ndarray) -> float | None:
    """Return how often a mean as far from zero would come of paired differences around zero (Student's t, two-sided).

    None of a single difference; 1 of several that are the same, such as the same few images, which say nothing of how
    much others would vary.
    """
    from scipy.stats import t

    if len(differences) < 2:
        return None
    error = differences.std(ddof=1) / len(differences) ** 0.5
    if error == 0:
        return 1.0
    return float(2 * t.sf(abs(differences.mean() / error), len(differences) - 1))


def holm(chances: Sequence[float]) -> list[float]:
    """Return each chance corrected for their number, so that one below a level is wrong no more often than that in all
    (Holm, 1979)."""
    order = np.argsort(chances, kind="stable")
    factors = np.arange(len(chances), 0, -1)
    corrected = np.empty(len(chances))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(chances)[order] * factors), 1)
    return corrected.tolist()


class Verdict(NamedTuple):
    """Which variant to use: its name, that of the baseline if none is better; and a sentence that says why."""

    use: str
    sentence: str


def verdict(plan: Plan, found: Sequence[Gain]) -> Verdict:
    """Return what the plan's rule makes of the gains."""
    rule = plan.rule
    judged = [gain for gain in found if gain.place == rule.at and gain.pair.equal == rule.equal]
    number = sum(gain.p is not None for gain in found if gain.pair.equal == rule.equal)
    where = f"at equal {rule.equal} {'along the curve' if rule.at == 'curve' else f'at the {rule.at}'}"
    how = f"95 % intervals over paired seeds; Holm over {number} comparisons"
    if not judged:
        return Verdict(plan.baseline, f"Nothing can be said yet {where}: no variant and {plan.baseline} share a seed.")
    by_variant = {name: [gain for gain in judged if gain.pair.variant == name] for name in plan.others}
    nearest = max((name for name in plan.others if by_variant[name]), key=lambda name: _mean(by_variant[name]))
    better = {
        name: each
        for name, each in by_variant.items()
        if sum(gain.sure and gain.mean > 0 for gain in each) >= rule.recipes
        and not any(gain.sure and gain.mean < 0 for gain in each)
    }
    if not better:
        said = f"the nearest, {nearest}, gains {_told(by_variant[nearest])}"
        return Verdict(plan.baseline, f"No variant is shown to be better than {plan.baseline} {where}: {said} ({how}).")
    use = max(better, key=lambda name: _mean(better[name]))
    return Verdict(use, f"Use {use}: {where} it gains {_told(better[use])} over {plan.baseline} ({how}).")


def _mean(each: Sequence[Gain]) -> float:
    return sum(gain.mean for gain in each) / len(each)


def _told(each: Sequence[Gain]) -> str:
    return ", ".join(f"{_points(gain)} points on {gain.pair.recipe}" for gain in each)


def _points(gain: Gain) -> str:
    return f"{gain.mean:+.2f}" + ("" if gain.half_width is None else f" ± {gain.half_width:.2f}")
