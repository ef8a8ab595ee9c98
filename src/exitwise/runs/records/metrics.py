"""metrics.csv: a row per epoch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exitwise.errors import UserError

METRICS = "metrics.csv"


def write_metrics(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Write the table anew from all rows so far."""
    if not history:
        return
    fields = list(dict.fromkeys(key for row in history for key in row))
    lines: list[list[Any]] = [fields, *([row.get(key, "") for key in fields] for row in history)]
    temporary = folder / f".{METRICS}.tmp"
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    temporary.replace(folder / METRICS)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rows; none where there is no table.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"expected numbers by epoch in {path}; {error}") from error
