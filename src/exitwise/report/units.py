"""Figures as text, the same for the command line and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def macs(value: float) -> str:
    """``58.0M`` for multiply-accumulates."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """``93.1 %`` for a share."""
    return f"{100 * value:.1f} %"


def shares(values: Sequence[float]) -> str:
    """``40/30/20/10 %``: where the images leave."""
    return "/".join(f"{100 * value:.0f}" for value in values) + " %"


def milliseconds(seconds: float) -> str:
    """``1.23 ms`` for a time."""
    return f"{1000 * seconds:.3g} ms"


def text_of(value: Any) -> str:
    """Return a setting's value as a reader would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "unset" if value is None else str(value)
