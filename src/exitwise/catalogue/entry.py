"""What every list of the catalogue is made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One thing that there is to choose.

    Attributes:
        name: that it is chosen by.
        summary: one line about it.
        path: dotted path of its implementation.
    """

    name: str
    summary: str
    path: str

    def load(self) -> Any:
        """Return the implementation, imported now."""
        module, _, name = self.path.rpartition(".")
        return getattr(import_module(module), name)
