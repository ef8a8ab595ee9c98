"""metrics.csv: a row per epoch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
