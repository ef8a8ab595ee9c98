"""Static figures (matplotlib) of what a report shows, for papers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exitwise.reporting.charts import Cost, accuracy_range
from exitwise.reporting.content import Budget, Comparison, Report, RunFigures
from exitwise.reporting.figures import COLOURS, macs_unit
from exitwise.reporting.lines import Line
from exitwise.shown import Noun, printable

MOST_CLASSES = 30
"""Classes in a figure at most, those that lose most."""

Format = Literal["png", "svg"]
FORMATS: tuple[Format, ...] = ("png", "svg")


def drawn(figure: Figure, kind: Format) -> bytes:
    """Return a figure as a file's content."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def paper_figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield figures by what a file of each may be called: accuracy against costs, and of each run classes, exits,
    reliability and learning."""
    unit, name = macs_unit(max(run.exits[-1].macs for run in report.runs))
    one = report.noun.removesuffix("s")
    yield "accuracy_against_macs", _curves(report, "macs", unit, f"mean compute per {one} ({name})")
    yield "accuracy_against_time", _curves(report, "seconds", 1e-3, f"mean time per {one} (ms, {report.device})")
    for number, run in enumerate(report.runs, start=1):
        prefix = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name).strip("-.") or "run"
        if len(report.runs) > 1:
            prefix = f"{number}-{prefix}"
        yield f"{prefix}-classes", _classes(run)
        yield f"{prefix}-exits", _exits(run, report.noun)
        yield f"{prefix}-reliability", _reliability(run)
        if run.learning:
            yield f"{prefix}-learning", _learning(run)


def _curves(report: Report, cost: Cost, unit: float, label: str) -> Figure:
    figure, axes = _axes()
    for number, each in enumerate(report.comparisons):
        colour = COLOURS[number % len(COLOURS)]
        _curve(axes, each, getattr(each, cost), [report.runs[run] for run in each.runs], cost, unit, colour)
    for rival in {rival for run in report.runs for rival in run.rivals if getattr(rival, cost) is not None}:
        axes.plot(getattr(rival, cost) / unit, 100 * rival.accuracy, "s", color="0.3", label=_plain(rival.name))
    axes.plot([], [], "D", color="0.4", label="as calibrated")
    axes.plot([], [], "x", color="0.4", label=f"all {report.noun} at one exit")
    axes.set(xlabel=label, ylabel="test accuracy (%)", ylim=accuracy_range(report))
    axes.legend(frameon=False)
    return figure


def _curve(
    axes: Axes,
    comparison: Comparison,
    line: Line,
    runs: Sequence[RunFigures],
    cost: Cost,
    unit: float,
    colour: str,
) -> None:
    def place(budget: Budget) -> float:
        return (budget.point.macs if cost == "macs" else budget.seconds) / unit

    costs = [value / unit for value in line.costs]
    axes.plot(costs, _percents(line.accuracies), color=colour, linewidth=1.8, label=_plain(comparison.label))
    if line.band is not None:
        low, high = map(_percents, line.band)
        axes.fill_between(costs, low, high, color=colour, alpha=0.18, linewidth=0)
    elif len(runs) > 1:
        for run in runs:
            points = sorted((place(budget), 100 * budget.point.accuracy) for budget in run.budgets)
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.6, alpha=0.6)
    alone = [getattr(exit, cost) / unit for exit in runs[0].exits]
    axes.plot(alone, _percents(comparison.exits), "x", color=colour)
    for run in runs:
        axes.plot(place(run.calibrated), 100 * run.calibrated.point.accuracy, "D", color=colour, markersize=5)


def _classes(run: RunFigures) -> Figure:
    """Difference to what losses are counted from, with its interval, by class."""
    known = [(each.name, each.paired) for each in run.classes if each.paired is not None][:MOST_CLASSES]
    figure, axes = _axes(height=1.2 + 0.22 * len(known))
    for place, (_, paired) in enumerate(known):
        low, high = (100 * end for end in paired.interval())
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.2)
        axes.plot(100 * paired.difference, place, "o", color=COLOURS[0], markersize=4)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(known)), [_plain(printable(name)) for name, _ in known])
    axes.invert_yaxis()
    axes.set(xlabel=f"points of accuracy against {run.yardstick}, with 95 % intervals")
    return figure


def _exits(run: RunFigures, noun: Noun) -> Figure:
    """Shares that leave at each exit, over the budgets."""
    figure, axes = _axes()
    shares = zip(*(budget.point.shares for budget in run.budgets), strict=True)
    costs = [100 * budget.point.macs / run.calibration.full_macs for budget in run.budgets]
    labels = [f"exit {number}" for number in range(1, len(run.exits) + 1)]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(labels))]
    axes.stackplot(costs, *(_percents(each) for each in shares), labels=labels, colors=colours, alpha=0.8)
    axes.set(xlabel="mean compute (% of the full network's)", ylabel=f"{noun} that leave (%)", ylim=(0, 100))
    axes.legend(loc="center right")
    return figure


def _reliability(run: RunFigures) -> Figure:
    figure = Figure(figsize=(2.6 * len(run.exits), 2.9), layout="constrained")
    for number, exit in enumerate(run.exits, start=1):
        axes = figure.add_subplot(1, len(run.exits), number)
        axes.plot([0, 100], [0, 100], "--", color="0.6", linewidth=0.8)
        size = sum(each.size for each in exit.before.bins)
        for diagram, colour, name in ((exit.before, COLOURS[0], "before"), (exit.after, COLOURS[1], "after")):
            x, y = ([100 * each[column] for each in diagram.bins] for column in (1, 2))
            areas = [6 + 120 * each.size / size for each in diagram.bins]
            axes.scatter(x, y, s=areas, color=colour, alpha=0.7, label=name, linewidths=0)
        axes.set(title=f"exit {number}, T = {exit.temperature:.2f}", xlim=(0, 103), ylim=(0, 103))
        axes.set_xlabel("confidence (%)")
        if number == 1:
            axes.set_ylabel("accuracy (%)")
            axes.legend(frameon=False, markerscale=0.5)
    return figure


def _learning(run: RunFigures) -> Figure:
    """Accuracy by epoch, on calibration images and, dotted, on training images."""
    figure, axes = _axes()
    epochs = [each.epoch for each in run.learning]
    for exit in range(len(run.exits)):
        colour = COLOURS[exit % len(COLOURS)]
        held = _percents([each.calibration[exit] for each in run.learning])
        axes.plot(epochs, held, color=colour, label=f"exit {exit + 1}")
        axes.plot(epochs, _percents([each.train[exit] for each in run.learning]), ":", color=colour, linewidth=1)
    axes.set(xlabel="epoch", ylabel="accuracy (%; dotted: in training)")
    axes.legend(frameon=False)
    return figure


def _axes(height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def _percents(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _plain(text: str) -> str:
    """Return a text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
