"""weights.json: a few samples' losses and weights at each exit, per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitwise.storage.record import Record

Rows = Sequence[dict[str, Any]]


def _encode(rows: Rows) -> dict[str, Any]:
    return {"epochs": list(rows)}


def _decode(content: dict[str, Any], version: int) -> Rows:
    return [{key: row[key] for key in ("epoch", "losses", "weights")} for row in content["epochs"]]


WEIGHTS: Record[Rows] = Record(
    "weights.json", "exitwise/weights", _encode, _decode, expected="epochs with their losses and weights"
)
