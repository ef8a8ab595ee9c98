"""The exit rule: a sample leaves at the first exit whose threshold its confidence reaches."""

from __future__ import annotations

from collections.abc import Sequence

from exitwise.budgets import MOST

Thresholds = tuple[float | None, ...]
"""One per exit but the last; None where nobody can leave."""


def finite_thresholds(thresholds: Sequence[float | None]) -> Thresholds:
    """Thresholds as floats.

    Raises:
        ValueError: for one that is not a finite number.
    """
    if any(t is not None and not abs(t) <= MOST for t in thresholds):
        raise ValueError(f"thresholds must be finite numbers, or None where nobody can leave; got {list(thresholds)}")
    return tuple(None if t is None else float(t) for t in thresholds)
