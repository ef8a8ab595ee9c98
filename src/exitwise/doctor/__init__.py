"""Looks over a data set and the machine before training, and says what to mend. Changes nothing.

It knows no console; :mod:`exitwise.cli.doctor` prints what it finds.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing looked at.

    Attributes:
        level: ``fine``; ``warning``: training goes, but look at it; ``problem``: training would stop.
        text: what was found.
        mend: what to do about it.
    """

    level: Literal["fine", "warning", "problem"]
    text: str
    mend: str = ""
