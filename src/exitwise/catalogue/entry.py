"""One thing to choose from: its name, a line about it, and where its code lives, which is imported when used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A thing that has a name.

    Attributes:
        name: what users call it.
        summary: one line about it.
        path: of its code, ``package.module:name``.
    """

    name: str
    summary: str
    path: str

    def load(self) -> Any:
        """Return the object at :attr:`path`, importing its module."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)
