"""Measures of confidence, by name: the one list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from exitwise.catalogue.entry import Entry

_HOME = "exitwise.exiting.measures"

MEASURES = (
    Entry("max-probability", "the largest probability", f"{_HOME}.max_probability.MaxProbability"),
    Entry("margin", "the largest probability less the second", f"{_HOME}.margin.Margin"),
    Entry("entropy", "1 - entropy / log of the number of classes", f"{_HOME}.entropy.Entropy"),
    Entry("patience", "how many exits right before this one agree with it", f"{_HOME}.patience.Patience"),
)
USUAL_MEASURE = MEASURES[0].name

if TYPE_CHECKING:
    MeasureName: TypeAlias = str
else:
    MeasureName = Literal[tuple(entry.name for entry in MEASURES)]
