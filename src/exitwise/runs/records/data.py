"""data.json and images.json: which images a run is of, by identity, and what became of their files."""

from __future__ import annotations

from typing import Any

from exitwise.storage.record import Record

NEEDED = frozenset({"classes", "sizes", "sha256"})


def _encode(content: dict[str, Any]) -> dict[str, Any]:
    return content


def _decode(content: dict[str, Any], version: int) -> dict[str, Any]:
    if not set(content) >= NEEDED:
        raise ValueError("something else")
    return content


DATA: Record[dict[str, Any]] = Record(
    "data.json", "exitwise/data", _encode, _decode, expected="classes, sizes and sha256"
)
IMAGES: Record[dict[str, Any]] = Record(
    "images.json", "exitwise/images", _encode, lambda content, version: content, expected="counts of images"
)
