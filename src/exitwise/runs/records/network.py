"""network.json: where the early exits of a backbone are, so that a run stays what it is when the choice changes."""

from __future__ import annotations

from typing import Any

from exitwise.storage.record import Record


def _decode(content: dict[str, Any], version: int) -> list[str]:
    names = content["exits_at"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("something else")
    return names


NETWORK: Record[list[str]] = Record(
    "network.json",
    "exitwise/network",
    lambda names: {"exits_at": names},
    _decode,
    expected="names of modules as exits_at",
)
