"""Whether early exits are worth it beside all else that was timed, in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exitwise.runs.records.bench import Gap, Network, Row

WORTH = 1.1
"""How much faster it must be to be worth it; times closer than that are the same."""

ALLOWED = 0.01
"""Accuracy below the network in full that a rival may have, where the calibration asked for no other drop."""

Compare = Callable[[Row, Row], Gap]
"""How much more accurate the first is than the second, on the same samples."""


def verdict(rows: Sequence[Row], judged: Network, compare: Compare, allowed: float = ALLOWED) -> str:
    """Return whether leaving early is worth it, from the rows of one batch size.

    The judged policy in its fastest form stands against the fastest of all others that are accurate enough, what leaves
    early beside it included: no more than ``allowed`` below the network in full, or as accurate as the policy is. Rows
    without accuracy have no vote.

    Args:
        rows: of the network in full, and of what is judged, at least one each.
        judged: the network as it was calibrated.
        compare: two rows.
        allowed: the drop in accuracy that was asked for.
    """
    full = min((row for row in rows if row.network.kind == "full" and row.form != "int8"), key=_mean)
    early = min((row for row in rows if row.network == judged), key=_mean)
    least = min((full.accuracy or 0) - allowed, early.accuracy or 0)
    rivals = [row for row in rows if row.network != judged and (row.accuracy or -1) >= least]
    rival = min([full, *rivals], key=_mean)
    what = f"{_named(early)}: {full.mean / early.mean:.2f}x as fast as the network in full ({full.form}), "
    what += f"{compare(early, full)} points of accuracy"
    faster = rival.mean / early.mean
    if faster >= WORTH:
        beside = "" if rival is full else f"; {faster:.2f}x as fast as {_named(rival)}, {compare(rival, full)} points"
        return f"worth it: {what}{beside}"
    if faster <= 1 / WORTH and rival is not full:
        again = f"{_named(rival)} is {1 / faster:.2f}x as fast again, {compare(rival, full)} points"
        return f"not worth it: {what}; {again}"
    gap = compare(early, rival)
    if rival is full and faster <= 1 / WORTH:
        return f"not worth it: {what}{_reason(early, full)}"
    if gap.mean > gap.half:
        return f"worth it: {what}; {_named(rival)} takes as long and is less accurate ({gap} points between them)"
    if gap.mean < -gap.half:
        return f"not worth it: {what}; {_named(rival)} takes as long and is more accurate ({gap} points between them)"
    if rival is full:
        return f"not worth it: {what}{_reason(early, full)}"
    return f"undecided: {what}; {_named(rival)} takes as long and is as accurate, within noise ({gap} points)"


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
