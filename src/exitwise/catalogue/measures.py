"""Measures of confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

_HOME = "exitwise.exiting.measures"

MEASURES = by_name(
    Entry("max-probability", "the largest probability", f"{_HOME}.max_probability:MaxProbability"),
    Entry("margin", "the largest probability less the second", f"{_HOME}.margin:Margin"),
    Entry("entropy", "1 - entropy / log of the number of classes", f"{_HOME}.entropy:Entropy"),
    Entry("patience", "how many exits right before this one agree with it", f"{_HOME}.patience:Patience"),
)
USUAL_MEASURE = "max-probability"

if TYPE_CHECKING:
    MeasureName: TypeAlias = str
else:
    MeasureName = Literal[tuple(MEASURES)]
