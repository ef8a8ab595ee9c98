"""Runs to be compared: which belong together as seeds of one another, and the line that each such group makes.

Works on settings and curves; knows neither networks nor how it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exitwise.errors import UserError
from exitwise.evaluation.outputs import accuracy_at, common_grid, mean_and_half_width
from exitwise.settings.schema import MAY_CHANGE_ON_RESUME
from exitwise.shown import text_of

BAND_SEEDS = 5
"""Runs from which on an interval is shown; of fewer, Student's is wider than what it is to tell, and each is shown."""

Settings = Mapping[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]
"""Costs and accuracies of a run's budgets."""


@dataclass(frozen=True)
class Line:
    """Accuracy against one cost, of one run or as the mean over seeds.

    Attributes:
        costs: rising.
        accuracies: at these costs.
        half_widths: of the 95 % interval over seeds; None for a single run.
        runs: how many it is of.
    """

    costs: list[float]
    accuracies: list[float]
    half_widths: list[float] | None
    runs: int = 1

    @property
    def band(self) -> tuple[list[float], list[float]] | None:
        """Return the ends of the interval, which are shares; None for fewer than :data:`BAND_SEEDS` runs."""
        if self.half_widths is None or self.runs < BAND_SEEDS:
            return None
        pairs = list(zip(self.accuracies, self.half_widths, strict=True))
        return [max(mean - half, 0.0) for mean, half in pairs], [min(mean + half, 1.0) for mean, half in pairs]


def line_of(curves: Sequence[Curve]) -> Line:
    """Return the line of runs that differ in nothing but the seed; of several, where all of them have points."""
    if len(curves) == 1:
        points = sorted(zip(*curves[0], strict=True))
        return Line([cost for cost, _ in points], [accuracy for _, accuracy in points], None)
    grid = common_grid([costs for costs, _ in curves])
    mean, half = mean_and_half_width([accuracy_at(*curve, grid) for curve in curves])
    assert half is not None
    return Line(grid.tolist(), mean.tolist(), half.tolist(), len(curves))


def group_runs(names: Sequence[str], settings: Sequence[Settings]) -> list[tuple[str, list[int]]]:
    """Put runs together that share all settings but the seed; label each group by what sets it apart.

    Returns:
        Label and positions of the runs of each group, in the order given.

    Raises:
        UserError: for two runs that share the seed too.
    """
    groups: list[tuple[Settings, list[int]]] = []
    for position, mine in enumerate(settings):
        shared = {key: value for key, value in mine.items() if key not in MAY_CHANGE_ON_RESUME | {"seed"}}
        members = next((members for other, members in groups if other == shared), None)
        if members is None:
            groups.append((shared, [position]))
            continue
        twin = next((other for other in members if settings[other]["seed"] == mine["seed"]), None)
        if twin is not None:
            raise UserError(
                "expected runs that differ in a setting or the seed; "
                f"{names[twin]} and {names[position]} have the same (seed {mine['seed']})"
            )
        members.append(position)
    differing = differing_settings([shared for shared, _ in groups])
    return [(_label(shared, differing), members) for shared, members in groups]


def differing_settings(settings: Sequence[Settings]) -> list[str]:
    """Return names of the settings that are not the same throughout."""
    first, *others = settings
    return [key for key in first if any(other[key] != first[key] for other in others)]


def _label(settings: Settings, differing: Sequence[str]) -> str:
    """``uniform``, or with what else differs: ``meta-weighted, lr 0.05``; ``lr 0.05`` if all are of one method."""
    method = [settings["method"]] if "method" in differing or not differing else []
    others = [f"{key} {text_of(settings[key])}" for key in differing if key != "method"]
    return ", ".join(method + others)
