"""A measure from outside: the mean of the exits' probabilities so far, whose answer may not be the exit's own.

Sure of itself by a factor that is fitted, so that a measure with parameters is tried as well.
"""

from dataclasses import dataclass

import numpy as np

from exitwise.catalogue.entry import Entry
from exitwise.exiting.arrays import largest
from exitwise.exiting.measures import Measure, Reading

ENTRY = Entry("running-mean", "the largest mean probability of the exits so far", "running_mean:RunningMean")


@dataclass(frozen=True)
class RunningMean(Measure):
    """The largest of the mean probabilities, times a factor that is 1 less the first exit's error."""

    name = "running-mean"
    needs_every_exit = True

    factors: tuple[float, ...] = (1.0,)

    def read(self, logits, exit, state=None):
        probabilities = self.probabilities(logits, exit)
        mean = probabilities if state is None else state["mean"] + (probabilities - state["mean"]) / (exit + 1)
        confidence, prediction = largest(mean)
        return Reading(confidence * self.factors[0], prediction, {"mean": mean}, mean)

    def fit(self, logits, targets, exit_costs):
        assert len(exit_costs) == logits.shape[1]
        wrong = float(np.mean(logits[:, 0].argmax(-1) != targets))
        return type(self)(self.temperatures, (1 - wrong,))
