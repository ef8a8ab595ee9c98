"""Whether early exits are worth it, in a sentence, from measured times."""

from __future__ import annotations

from collections.abc import Sequence

from exitwise.runs.records.bench import Row

WORTH = 1.1
"""How much faster it must be to be worth it."""


def verdict(rows: Sequence[Row]) -> str:
    """Return whether early exits are worth it, from the rows of one batch size; each network counts in its fastest
    form."""
    full, early = (min((r for r in rows if r.network.kind == kind), key=_mean) for kind in ("full", "early"))
    least = early.network.accuracy or 0
    as_accurate = [r for r in rows if r.network.kind == "static" and (r.network.accuracy or -1) >= least]
    gain, saved = full.mean / early.mean, 1 - early.mean / full.mean
    promised = 1 - (early.network.macs or 0) / (full.network.macs or 1)
    more = round(100 * (least - (full.network.accuracy or 0)), 1)
    what = f"{early.network.name} ({early.form}): {gain:.2f}x as fast as the network without exits ({full.form}), "
    what += f"{abs(more)} points of accuracy {'more' if more > 0 else 'less'}" if more else "as accurate"
    saves = f"{abs(100 * promised):.0f} % {'fewer' if promised >= 0 else 'more'} MACs and "
    saves += f"{abs(100 * saved):.0f} % {'less' if saved >= 0 else 'more'} time"
    if promised < 1 - 1 / WORTH:
        return f"not worth it: {what}; {saves}: too few images leave early"
    if gain < WORTH:
        return f"not worth it: {what}; {saves}: exits, small operators and smaller batches cost more than their MACs"
    static = min(as_accurate, key=_mean, default=None)
    if static is not None and static.mean <= early.mean:
        return (
            f"not worth it: {what}; but {static.network.name} ({static.form}) is as accurate and "
            f"{early.mean / static.mean:.2f}x as fast again"
        )
    return f"worth it: {what}; {saves}"


def _mean(row: Row) -> float:
    return row.mean
