"""Classes or groups as a table: how each fares by a policy. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exitwise.exiting.paired import signed
from exitwise.exiting.parts import Estimate, Part
from exitwise.shown import Noun

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10
"""Of many parts, how many are shown: those that lose most."""


def parts_table(
    parts: Sequence[Part], what: str, yardstick: str, exit_macs: Sequence[float], full: float, noun: Noun
) -> Table:
    """Return a row per part, the largest loss first.

    Args:
        parts: classes or groups.
        what: one of them is, such as ``class``.
        yardstick: what losses are counted from.
        exit_macs: cost of leaving at each exit.
        full: what shares of MACs are of.
        noun: what the samples are called.
    """
    from rich.table import Table
    from rich.text import Text

    shown = sorted(parts, key=lambda part: part.paired.difference)[:SHOWN]
    title = f"By {what}, in %, with 95 % intervals; points against {yardstick}"
    if len(shown) < len(parts):
        title += f"; those of {len(parts)} that lose most"
    table = Table(title=title, box=None, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column(what, overflow="fold", min_width=12)
    abstains = any(part.answers is not None for part in parts)
    for name in (noun, "accuracy", "points", "of MACs", *(["answered"] if abstains else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for part in shown:
        low, high = part.paired.interval()
        table.add_row(
            Text(part.name),
            str(part.samples),
            _percents(part.accuracy),
            f"{signed(part.paired.difference)} [{signed(low)}, {signed(high)}]",
            _percents(Estimate(*(cost / full for cost in part.cost(exit_macs)))),
            *([] if part.answers is None else [f"{100 * part.answers.share.mean:.1f}"]),
        )
    return table


def _percents(estimate: Estimate) -> str:
    mean, low, high = (100 * share for share in estimate)
    return f"{mean:.1f} [{low:.0f}, {high:.0f}]"
