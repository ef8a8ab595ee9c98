"""How the tensors of stage graphs are called, so that each finds what the stage before gives.

A stage takes the bundle's inputs that it needs by their names, and the state that the stage before hands on as
``state_0``, ``state_1``, ... It gives ``logits`` of its exit, and the next state as ``next_0``, ``next_1``, ... The
graph for single samples gives ``probabilities`` in place of ``logits`` where the measure makes the answer of several
exits.

In bundles of version 1 the first stage takes the images as ``state_0``, and a stage gives ``confidence``,
``prediction`` and what its measure carries on, by the measure's own names, which the stage after takes as
``before_NAME``.
"""

from __future__ import annotations

from functools import lru_cache

BEFORE, STATE, NEXT, LOGITS, PROBABILITIES = "before_", "state_", "next_", "logits", "probabilities"


@lru_cache(1024)
def source_of(name: str) -> str:
    """Return the name under which there is, before a stage, what an input of it takes."""
    if name.startswith(BEFORE):
        return name.removeprefix(BEFORE)
    return NEXT + name.removeprefix(STATE) if name.startswith(STATE) else name
