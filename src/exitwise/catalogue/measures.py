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
    Entry(
        "running-ensemble",
        "the largest mean probability of the exits so far, dear ones counting more; its class is the answer",
        f"{_HOME}.running_ensemble:RunningEnsemble",
    ),
    Entry(
        "fitted-ensemble",
        "the same with weights that make held-out answers likeliest",
        f"{_HOME}.fitted_ensemble:FittedEnsemble",
    ),
    Entry(
        "accuracy",
        "how often this exit was right on held-out samples when it was as sure",
        f"{_HOME}.accuracy:Accuracy",
    ),
    Entry(
        "deferral",
        "how little accuracy later exits promise for their cost, learned on held-out samples",
        f"{_HOME}.deferral:Deferral",
    ),
)
USUAL_MEASURE = "max-probability"

if TYPE_CHECKING:
    MeasureName: TypeAlias = str
else:
    MeasureName = Literal[tuple(MEASURES)]
