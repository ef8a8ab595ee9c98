"""How the tensors of stage graphs are called, so that each finds what the stage before gives.

A stage gives ``confidence`` and ``prediction`` of its exit, what its measure carries on by the measure's own names, and
the next state as ``next_0``, ``next_1``, ... The stage after takes these as ``before_NAME`` and ``state_0``, ...
"""

from __future__ import annotations

BEFORE, STATE, NEXT = "before_", "state_", "next_"
ANSWER = ("confidence", "prediction")


def source_of(name: str) -> str:
    """Return the name of the output, of the stage before, that an input takes."""
    return name.removeprefix(BEFORE) if name.startswith(BEFORE) else name.replace(STATE, NEXT)
