"""A study as a page: what each variant gains, the curves, and what training costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from exitwise.evaluation.outputs import accuracy_at, common_grid, mean_and_half_width
from exitwise.reporting.figures import COLOURS, macs_unit, spanned
from exitwise.reporting.lines import line_of
from exitwise.studying.comparison import Gain, Pair
from exitwise.studying.plan import Equal
from exitwise.studying.records import Study


class Part(NamedTuple):
    """A recipe at one equality.

    Attributes:
        recipe, equal: which.
        rows: of each variant its gains, place by place.
        lines: what is drawn: a variant and for how many updates it trained; the baseline's first.
    """

    recipe: str
    equal: Equal
    rows: list[list[Gain]]
    lines: list[tuple[str, int]]


def parts(study: Study) -> list[Part]:
    """Return what there is to show, recipe by recipe."""
    found = []
    for recipe in study.recipes:
        for equal in study.plan.equal:
            pairs = [pair for pair in study.pairs if (pair.recipe, pair.equal) == (recipe, equal)]
            rows = [row for pair in pairs if (row := [gain for gain in study.gains if gain.pair == pair])]
            shown = [row[0].pair for row in rows]
            base = dict.fromkeys((study.plan.baseline, pair.baseline_updates) for pair in shown)
            if rows:
                found.append(Part(recipe, equal, rows, [*base, *((pair.variant, pair.updates) for pair in shown)]))
    return found


def study_chart(study: Study) -> dict[str, Any]:
    """Return what the page's script draws: of each part the curves, and the gains over the baseline."""
    charts = {}
    for number, part in enumerate(parts(study)):
        unit, name = macs_unit(max(run["exit_macs"][-1] for run in study.runs if run["recipe"] == part.recipe))
        title = f"mean compute per sample ({name})"
        curves = [_curve(study, part.recipe, *line, unit) for line in part.lines]
        gains = [_gain_line(study, row[0].pair, part, unit) for row in part.rows]
        charts[f"curve-{number}"] = {"title": title, "y": "accuracy (%)", "lines": curves, "range": _range(curves)}
        words = {"y": "gain (points)", "sign": " points"}
        charts[f"gain-{number}"] = {"title": title, **words, "lines": gains}
    return {"colours": COLOURS, "range": None, "charts": charts, "runs": []}


def _runs(study: Study, recipe: str, variant: str, updates: int) -> dict[int, Any]:
    wanted = recipe, variant, updates
    return {run["seed"]: run for run in study.runs if (run["recipe"], run["variant"], run["updates"]) == wanted}


def _columns(run: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Return MACs and accuracies of a run's curve."""
    _, macs, accuracies = zip(*run["curve"], strict=True)
    return macs, accuracies


def _curve(study: Study, recipe: str, variant: str, updates: int, unit: float) -> dict[str, Any]:
    runs = list(_runs(study, recipe, variant, updates).values())
    line = line_of([_columns(run) for run in runs])
    exits, _ = mean_and_half_width([run["exits"] for run in runs])
    return {
        "label": f"{variant}, {updates} updates",
        "x": [macs / unit for macs in line.costs],
        "y": [100 * accuracy for accuracy in line.accuracies],
        "band": None,  # intervals over seeds are of the differences, beside
        "exits": {"x": [macs / unit for macs in runs[0]["exit_macs"]], "y": (100 * exits).tolist()},
    }


def _gain_line(study: Study, pair: Pair, part: Part, unit: float) -> dict[str, Any]:
    mine = _runs(study, pair.recipe, pair.variant, pair.updates)
    theirs = _runs(study, pair.recipe, study.plan.baseline, pair.baseline_updates)
    both = [(_columns(mine[seed]), _columns(theirs[seed])) for seed in sorted(mine.keys() & theirs.keys())]
    grid = common_grid([columns[0] for each in both for columns in each])
    mean, half = mean_and_half_width([accuracy_at(*a, grid) - accuracy_at(*b, grid) for a, b in both])
    return {
        "label": pair.variant,
        "number": part.lines.index((pair.variant, pair.updates)),
        "x": (grid / unit).tolist(),
        "y": (100 * mean).tolist(),
        "band": None if half is None else [(100 * (mean - half)).tolist(), (100 * (mean + half)).tolist()],
        "exits": {"x": [], "y": []},
    }


def _range(lines: Sequence[dict[str, Any]]) -> tuple[float, float]:
    return spanned([value / 100 for line in lines for value in (*line["y"], *line["exits"]["y"])])
