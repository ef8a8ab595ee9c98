"""How far the probabilities are from even."""

from __future__ import annotations

import math

from exitwise.exiting.arrays import Array, entropy, largest
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Float


class Entropy(Measure):
    """1 - entropy / log C of the softmax."""

    name = "entropy"

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        probabilities = self.probabilities(logits, exit)
        _, prediction = largest(probabilities)
        return Reading(1 - entropy(probabilities) / math.log(logits.shape[-1]), prediction)
