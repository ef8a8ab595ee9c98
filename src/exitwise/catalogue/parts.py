"""What an entry of an axis of training methods is."""

from __future__ import annotations

from dataclasses import dataclass

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.options import Options


@dataclass(frozen=True)
class Part(Entry):
    """A choice on one axis.

    Attributes:
        options: what it takes.
    """

    options: type[Options] = Options
