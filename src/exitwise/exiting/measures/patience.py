"""How many exits agree (Zhou et al., "BERT loses patience", NeurIPS 2020)."""

from __future__ import annotations

from exitwise.exiting.arrays import Array, counted, largest, namespace
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Float


class Patience(Measure):
    """How many exits right before this one agree with it, the largest probability deciding among equals; in [0, 1]."""

    name = "patience"
    needs_every_exit = True

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        confidence, prediction = largest(self.probabilities(logits, exit))
        arrays = namespace(prediction)
        if state is None:
            streak = arrays.zeros_like(prediction)
        else:
            streak = arrays.where(prediction == state["prediction"], state["streak"] + 1, 0)
        carried = {"prediction": prediction, "streak": streak}
        return Reading(counted(streak, confidence) / (exit + 1), prediction, carried)
