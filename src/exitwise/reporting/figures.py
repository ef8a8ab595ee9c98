"""Static figures (matplotlib) of evaluated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from exitwise.runs.records.evaluation import BudgetPoint
from exitwise.shown import Noun

Result = tuple[Sequence[BudgetPoint], Sequence[float]]
"""Budgets and the accuracies of single exits of one run, on test data."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart with any colour vision."""

SMALLEST_RANGE = 6.0
"""Points of accuracy that the axis spans at least, so that noise does not look like a difference."""


def macs_unit(largest: float) -> tuple[float, str]:
    """Return the unit for amounts of compute up to ``largest``, and its name."""
    scales = ((1e9, "billion MACs"), (1e6, "million MACs"), (1e3, "thousand MACs"))
    return next((scale for scale in scales if largest >= scale[0]), scales[-1])


def spanned(values: Sequence[float]) -> tuple[float, float]:
    """Return the accuracies in percent that an axis spans for these, given as shares."""
    low, high = 100 * min(values), 100 * max(values)
    margin = max(0.1 * (high - low), (SMALLEST_RANGE - (high - low)) / 2)
    return max(low - margin, 0.0), min(high + margin, 100.5)


def accuracy_against_macs(
    results: Mapping[str, Sequence[Result]], exit_macs: Sequence[float], noun: Noun = "images"
) -> Figure:
    """Test accuracy against mean MACs: a line per run over its budgets, crosses for its exits used alone.

    Args:
        results: name to the results of its runs (one colour per name).
        exit_macs: cost of leaving at each exit.
        noun: what the samples are called.
    """
    unit, name = macs_unit(exit_macs[-1])
    one = noun.removesuffix("s")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for colour, (label, runs) in zip(COLOURS, results.items(), strict=False):
        for number, (budgets, anytime) in enumerate(runs):
            curve = sorted((line.test.macs, line.test.accuracy) for line in budgets)
            macs = [cost / unit for cost, _ in curve]
            accuracies = [100 * accuracy for _, accuracy in curve]
            axes.plot(macs, accuracies, color=colour, linewidth=1.8, label=label if number == 0 else None)
            costs = [cost / unit for cost in exit_macs]
            axes.plot(costs, [100 * accuracy for accuracy in anytime], "x", color=colour, markersize=6)
    axes.plot([], [], "x", color="0.4", label=f"all {noun} at one exit")
    axes.set_xlabel(f"mean compute per {one} ({name})")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"Accuracy against compute, exits chosen per {one}")
    low, high = axes.get_ylim()
    margin = max(0, SMALLEST_RANGE - (high - low)) / 2
    axes.set_ylim(low - margin, min(high + margin, 100.5))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure
