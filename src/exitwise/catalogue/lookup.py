"""Finds entries by name, and lists them for a command's help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from exitwise.catalogue.entry import Entry
from exitwise.errors import UserError, near_match

Kind = TypeVar("Kind", bound=Entry)


def by_name(*entries: Kind) -> dict[str, Kind]:
    """Return the entries by their names, in order."""
    return {entry.name: entry for entry in entries}


def find(entries: Mapping[str, Kind], name: str, what: str) -> Kind:
    """Return the entry of that name.

    Raises:
        UserError: for an unknown name, with the nearest known one; ``what`` says of which kind.
    """
    if name not in entries:
        raise UserError(f"unknown {what} {name!r}; {near_match(name, entries)}")
    return entries[name]


def summaries(entries: Mapping[str, Entry]) -> str:
    """Return the names with their summaries, as a flag's help: ``onnx: a graph per stage; pt2: ...``."""
    return "; ".join(f"{entry.name}: {entry.summary}" for entry in entries.values()) + "."
