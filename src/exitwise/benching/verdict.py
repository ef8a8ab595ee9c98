"""Whether early exits are worth it beside all else that was timed, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from exitwise.benching.measured import Speed
from exitwise.exiting.outcome import TOLERANCE
from exitwise.runs.records.bench import Gap, Network, Row

WORTH = 1.1
"""How much faster it must be to be worth it; times closer than that are the same."""


class Comparison(Protocol):
    """What tells two rows of a batch size apart."""

    def gap(self, one: Row, other: Row) -> Gap | None:
        """Return how much more accurate the first is on the same samples; None where unknown."""

    def speed(self, one: Row, other: Row) -> Speed:
        """Return how many times as fast the first is."""


def verdict(rows: Sequence[Row], judged: Network, compared: Comparison, allowed: float = TOLERANCE) -> str:
    """Return whether leaving early is worth it, from the rows of one batch size.

    The judged policy in its fastest form stands against the fastest of all others that are accurate enough, what leaves
    early beside it included: no more than ``allowed`` below the full network, or as accurate as the policy is. Rows
    without accuracy have no vote. It is faster, or slower, if the interval of that leaves out equal times; where it
    does not, or times are closer than :data:`WORTH`, accuracy decides, unless times may yet overturn that.

    Args:
        rows: of the full network, and of what is judged, at least one each.
        judged: the network as it was calibrated.
        compared: tells two rows apart.
        allowed: the drop in accuracy that was asked for.
    """
    full = min((row for row in rows if row.network.kind == "full" and row.form != "int8"), key=_mean)
    early = min((row for row in rows if row.network == judged), key=_mean)
    least = min((full.accuracy or 0) - allowed, early.accuracy or 0)
    rivals = [row for row in rows if row.network != judged and (row.accuracy or -1) >= least]
    rival = min([full, *rivals], key=_mean)

    def points(one: Row, other: Row) -> Gap:
        return compared.gap(one, other) or Gap(math.nan, math.nan)

    what = f"{_named(early)}: {compared.speed(early, full)} as fast as the full network ({full.form}), "
    what += f"{points(early, full)} points of accuracy"
    speed, gap = compared.speed(early, rival), points(early, rival)
    if speed.mean >= WORTH and speed.low > 1:
        beside = "" if rival is full else f"; {speed} as fast as {_named(rival)}, {points(rival, full)} points"
        return f"worth it: {what}{beside}"
    if speed.mean <= 1 / WORTH and speed.high < 1:
        if rival is full:
            return f"not worth it: {what}{_reason(early, full)}"
        again = compared.speed(rival, early)
        return f"not worth it: {what}; {_named(rival)} is {again} as fast again, {points(rival, full)} points"
    may_be_slower, may_be_faster = speed.low < 1 / WORTH, speed.high > WORTH
    if gap.mean > gap.half and not may_be_slower:
        return f"worth it: {what}; {_named(rival)} is no faster and less accurate ({gap} points between them)"
    if gap.mean < -gap.half and not may_be_faster:
        return f"not worth it: {what}; {_named(rival)} is no slower and more accurate ({gap} points between them)"
    if rival is full and not may_be_faster:
        return f"not worth it: {what}{_reason(early, full)}"
    if may_be_slower or may_be_faster:
        noisy = f"{speed} as fast as {_named(rival)}, {gap} points: times are too uncertain to tell (more seconds may)"
        return f"undecided: {what}; {noisy}"
    return f"undecided: {what}; {_named(rival)} takes as long and is as accurate, within noise ({gap} points)"


def tails(rows: Sequence[Row], judged: Network) -> str:
    """Return which of the longest times are worse than the full network's, from the rows of one batch size; empty
    where none is.

    Leaving early makes the mean shorter. Who goes through all exits pays for them, and a batch for whoever stays.
    """
    full = min((row for row in rows if row.network.kind == "full" and row.form != "int8"), key=_mean)
    early = min((row for row in rows if row.network == judged), key=_mean)
    longer = [
        f"{name} {1000 * mine:.3g} ms, {mine / whole:.2f}x that of the full network ({1000 * whole:.3g} ms)"
        for name, mine, whole in (("p95", early.p95, full.p95), ("p99", early.p99, full.p99))
        if mine >= WORTH * whole
    ]
    return f"worse in the longest times of {_named(early)}: {'; '.join(longer)}" if longer else ""


def doubts(rows: Sequence[Row], alone: Mapping[Network, int]) -> list[str]:
    """Return what cannot be, or hardly, in the times of a network cut at its exits: a part that takes longer than more,
    or than a policy that contains it.

    Args:
        rows: of any batch sizes and forms.
        alone: the full network and its cuts, with the exit that each ends at.
    """
    found = []
    cells = {(row.batch_size, row.form): None for row in rows}
    for size, form in cells:
        cell = [row for row in rows if (row.batch_size, row.form) == (size, form) and row.network in alone]
        for part, more in pairwise(sorted(cell, key=lambda row: alone[row.network])):
            if part.mean >= WORTH * more.mean and (part.macs or 0) < (more.macs or 0):
                found.append(
                    f"batch {size}, {form}: {part.network.name} took {part.mean / more.mean:.2f}x as long as "
                    f"{more.network.name}, for fewer MACs: an exit that is slow, or other work beside the measuring"
                )
        first = min(cell, key=lambda row: alone[row.network], default=None)
        for row in rows:
            early = row.network.kind == "early" and (row.batch_size, row.form) == (size, form)
            if first is not None and early and first.mean >= WORTH * row.mean and (first.macs or 0) <= (row.macs or 0):
                found.append(
                    f"batch {size}, {form}: {row.network.name} took {row.mean / first.mean:.2f}x as long as "
                    f"{first.network.name}, which is part of it: other work beside the measuring"
                )
    return found


def _reason(early: Row, full: Row) -> str:
    promised = 1 - (early.macs or 0) / (full.macs or 1)
    saves = f"; {abs(100 * promised):.0f} % {'fewer' if promised >= 0 else 'more'} MACs"
    if promised < 1 - 1 / WORTH:
        return f"{saves}: too few samples leave early"
    return f"{saves}, but exits, small operators and smaller batches cost more than that"


def _named(row: Row) -> str:
    return f"{row.network.name} ({row.form})"


def _mean(row: Row) -> float:
    return row.mean
