"""The largest probability."""

from __future__ import annotations

from exitwise.exiting.arrays import Array, largest
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Float


class MaxProbability(Measure):
    """The largest probability of the softmax."""

    name = "max-probability"

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        return Reading(*largest(self.probabilities(logits, exit)))
