"""The two largest probabilities' difference."""

from __future__ import annotations

from exitwise.exiting.arrays import Array, two_largest
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Float


class Margin(Measure):
    """The largest probability of the softmax less the second largest."""

    name = "margin"

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        found, classes = two_largest(self.probabilities(logits, exit))
        return Reading(found[..., 0] - found[..., 1], classes[..., 0])
