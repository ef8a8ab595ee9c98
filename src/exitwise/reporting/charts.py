"""What the page's script draws and shows, as plain values; all text in it is ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from exitwise import shown
from exitwise.reporting.content import Budget, Comparison, Report, RunFigures
from exitwise.reporting.figures import COLOURS, macs_unit, spanned
from exitwise.reporting.learning import Epoch
from exitwise.reporting.lines import BAND_SEEDS, Line, line_of
from exitwise.reporting.reliability import Reliability
from exitwise.reporting.results import Results

Cost = Literal["macs", "seconds"]

EDGE = 0.03
"""Share of an axis beyond what it shows."""


def chart_data(report: Report) -> dict[str, Any]:
    """Return the charts of runs."""
    unit, unit_name = macs_unit(max(run.exits[-1].macs for run in report.runs))
    one = report.noun.removesuffix("s")
    return {
        "noun": report.noun,
        "colours": COLOURS,
        "range": accuracy_range(report),
        "charts": {
            "macs": _chart(report, "macs", f"mean compute per {one} ({unit_name})", unit),
            "seconds": _chart(report, "seconds", f"mean time per {one} (ms)", 1e-3),
        },
        "runs": [_run(run, unit) for run in report.runs],
    }


def _chart(report: Report, cost: Cost, title: str, unit: float) -> dict[str, Any]:
    shown = [each for run in report.runs for each in (*run.exits, *run.rivals)]
    costs = [getattr(each, cost) / unit for each in shown if getattr(each, cost) is not None]
    return {"title": title, "lines": _lines(report, cost, unit), "span": span(costs)}


def span(costs: Sequence[float]) -> tuple[float, float]:
    """Return what an axis of costs spans, so that the cheapest and the dearest are not at its very edge."""
    margin = EDGE * (max(costs) - min(costs)) or EDGE
    return min(costs) - margin, max(costs) + margin


def results_chart(results: Results) -> dict[str, Any]:
    """Return the same for a network: one line, its budgets on test samples, and the calibrated point."""
    evaluation = results.evaluation
    costs, calibrated, points = evaluation.exit_macs, results.calibrated, [each.test for each in evaluation.budgets]
    unit, unit_name = macs_unit(costs[-1])
    line = line_of([([point.macs / unit for point in points], [point.accuracy for point in points])])
    alone = [cost / unit for cost in costs]
    drawn = {
        "label": "exits chosen per sample",
        "x": line.costs,
        "y": _percents(line.accuracies),
        "band": None,
        "exits": {"x": alone, "y": _percents(evaluation.anytime)},
    }
    return {
        "colours": COLOURS,
        "range": spanned([*line.accuracies, *evaluation.anytime, calibrated.accuracy]),
        "charts": {"macs": {"title": f"mean compute per sample ({unit_name})", "lines": [drawn], "span": span(alone)}},
        "runs": [],
        "marks": {"calibrated": {"macs": calibrated.macs / unit, "accuracy": 100 * calibrated.accuracy}},
    }


def accuracy_range(report: Report) -> tuple[float, float]:
    """Accuracies in percent that the charts span: all lines and exits alone, and never so few that noise looks like a
    difference."""
    lines = [value for each in report.comparisons for value in (*each.macs.accuracies, *each.exits)]
    return spanned([*lines, *(value for run in report.runs for value in _accuracies(run))])


def _accuracies(run: RunFigures) -> list[float]:
    """Return those of all that is drawn of a run alone."""
    marked = [run.calibrated] if run.cheapest is None else [run.calibrated, run.cheapest.budget]
    points = [budget.point.accuracy for budget in (*run.budgets, *marked)]
    return [
        *points,
        run.calibrated.point.accuracy - run.calibrated.paired.difference,
        *(r.accuracy for r in run.rivals),
    ]


def _lines(report: Report, cost: Cost, unit: float) -> list[dict[str, Any]]:
    """Return what is drawn against one cost, in its unit and percent."""
    lines = []
    for each in report.comparisons:
        line: Line = getattr(each, cost)
        alone = [getattr(figures, cost) / unit for figures in report.runs[each.runs[0]].exits]
        lines.append(
            {
                "label": each.label,
                "x": [value / unit for value in line.costs],
                "y": _percents(line.accuracies),
                "band": line.band and [_percents(end) for end in line.band],
                "seeds": _seeds(report, each, cost, unit),
                "exits": {"x": alone, "y": _percents(each.exits)},
            }
        )
    return lines


def _seeds(report: Report, comparison: Comparison, cost: Cost, unit: float) -> list[dict[str, Any]]:
    """Return the lines of single runs, where there are several and too few for an interval."""
    if not 1 < len(comparison.runs) < BAND_SEEDS:
        return []
    curves = ([_at(budget, cost, unit) for budget in report.runs[run].budgets] for run in comparison.runs)
    return [{"x": [x for x, _ in points], "y": [y for _, y in points]} for points in map(sorted, curves)]


def _at(budget: Budget, cost: Cost, unit: float) -> tuple[float, float]:
    value = budget.point.macs if cost == "macs" else budget.seconds
    return value / unit, 100 * budget.point.accuracy


def _run(run: RunFigures, unit: float) -> dict[str, Any]:
    shares = [budget.point.macs for budget in run.budgets]
    wanted = run.calibrated.point.macs
    return {
        "name": run.name,
        "start": min(range(len(shares)), key=lambda i: abs(shares[i] - wanted)),
        "budgets": [_budget(run, budget, unit) for budget in run.budgets],
        "marks": _marks(run, unit),
        "reliability": [[_diagram(figures.before), _diagram(figures.after)] for figures in run.exits],
        "weights": run.weights,
        "learning": [_learned(run.learning, exit) for exit in range(len(run.exits))] if run.learning else [],
    }


def _marks(run: RunFigures, unit: float) -> dict[str, Any]:
    """Return what is marked on the charts beside the chosen budget."""
    found = {"calibrated": _place(run.calibrated, unit)}
    if run.cheapest is not None:
        found["cheapest"] = _place(run.cheapest.budget, unit)
    rivals = [
        {
            "name": rival.name,
            "macs": rival.macs / unit,
            "seconds": None if rival.seconds is None else 1000 * rival.seconds,
            "accuracy": 100 * rival.accuracy,
        }
        for rival in run.rivals
    ]
    level = 100 * (run.calibrated.point.accuracy - run.calibrated.paired.difference)
    return {**found, "rivals": rivals, "level": {"name": run.yardstick, "accuracy": level}}


def _place(budget: Budget, unit: float) -> dict[str, float]:
    return {"macs": budget.point.macs / unit, "seconds": 1000 * budget.seconds, "accuracy": 100 * budget.point.accuracy}


def _learned(epochs: Sequence[Epoch], exit: int) -> dict[str, list[float]]:
    """Return the curves of one exit, in percent."""
    return {
        "x": [each.epoch for each in epochs],
        "train": _percents([each.train[exit] for each in epochs]),
        "calibration": _percents([each.calibration[exit] for each in epochs]),
    }


def _diagram(reliability: Reliability) -> dict[str, Any]:
    bins, size = reliability.bins, sum(each.size for each in reliability.bins)
    return {
        "x": _percents([each.confidence for each in bins]),
        "y": _percents([each.accuracy for each in bins]),
        "share": [each.size / size for each in bins],
    }


def _budget(run: RunFigures, budget: Budget, unit: float) -> dict[str, Any]:
    point, share = budget.point, shown.percent(budget.point.macs / run.calibration.full_macs)
    accuracy, seconds = shown.percent(point.accuracy), shown.milliseconds(budget.seconds)
    chance = budget.paired.is_noise and budget.paired.difference != 0
    return {
        **_place(budget, unit),
        "text": {
            "accuracy": accuracy,
            "macs": shown.macs(point.macs),
            "share": share,
            "seconds": seconds,
            "lost": str(budget.paired),
            "live": f"{accuracy} right at {share} of the compute, {seconds} each: {budget.paired} against "
            f"{run.yardstick}",
            "chance": "The difference may be chance." if chance else "",
            "command": budget.command,
        },
        "shares": [shown.percent(share) for share in point.shares],
        "thresholds": [threshold_text(threshold) for threshold in budget.thresholds],
    }


def _percents(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def threshold_text(threshold: float | None) -> str:
    """Return a threshold as the page shows it."""
    return "none leaves" if threshold is None else f"{threshold:.4f}"
