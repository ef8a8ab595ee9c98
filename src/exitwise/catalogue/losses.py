"""What exits learn from, with options. Without another choice it is the labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from exitwise.catalogue.lookup import by_name
from exitwise.catalogue.options import Options, Surroundings, option
from exitwise.catalogue.parts import Part

_HOME = "exitwise.methods.losses"


@dataclass(frozen=True)
class DistilOptions(Options):
    """Options of the losses that learn from an answer."""

    distil: float = option(
        0.5,
        "Share of the loss that is the divergence from that answer; implies distil-last; 0: none.",
        ge=0,
        le=1,
    )
    distil_temperature: float = option(2.0, "Temperature of the answers that are compared.", gt=0)


@dataclass(frozen=True)
class DistilRunOptions(DistilOptions):
    """Options of ``distil-run``."""

    distil_from: str | None = option(None, "The run to learn from, by its last exit; implies distil-run.")

    def check(self, around: Surroundings) -> None:
        if self.distil_from is None:
            raise ValueError("loss distil-run needs distil_from, the run to learn from; got none")
        if self.distil == 0:
            raise ValueError("distil_from needs distil above 0; got 0")


@dataclass(frozen=True)
class MarginOptions(Options):
    """Options of ``margin``."""

    one_class: ClassVar[bool] = True

    margin: float = option(0.3, "By how much right answers are to be surer than wrong ones, on average.", ge=0, le=1)
    margin_weight: float = option(0.1, "What it counts beside the labels when they are not.", ge=0)


@dataclass(frozen=True)
class ClassBalancedOptions(Options):
    """Options of ``class-balanced``."""

    one_class: ClassVar[bool] = True

    overlap: float = option(0.999, "How much images of a class repeat one another (beta); 0: no weights.", ge=0, lt=1)


@dataclass(frozen=True)
class LogitAdjustedOptions(Options):
    """Options of ``logit-adjusted``."""

    adjustment: float = option(1.0, "How much of the logarithm of its share a class is handicapped by (tau).", ge=0)


LOSSES = by_name(
    Part("labels", "cross-entropy with the labels (default)", "exitwise.weighting.losses:Loss"),
    Part(
        "distil-last", "early exits learn from the last exit's answer too", f"{_HOME}.distil:DistilLast", DistilOptions
    ),
    Part(
        "distil-next", "early exits learn from the next exit's answer too", f"{_HOME}.distil:DistilNext", DistilOptions
    ),
    Part(
        "distil-run",
        "all exits learn from another run's answers too",
        f"{_HOME}.distil:DistilRun",
        DistilRunOptions,
    ),
    Part(
        "margin",
        "besides, right answers are to be surer than wrong ones (COSEE)",
        f"{_HOME}.margin:Margin",
        MarginOptions,
    ),
    Part(
        "class-balanced",
        "rare classes count more, by their effective number of images",
        f"{_HOME}.by_class:ClassBalanced",
        ClassBalancedOptions,
    ),
    Part(
        "logit-adjusted",
        "logits know how frequent their classes are while they are trained",
        f"{_HOME}.by_class:LogitAdjusted",
        LogitAdjustedOptions,
    ),
)


def implied_loss(settings: Mapping[str, Any], otherwise: str) -> str:
    """Return the loss that plain values without one mean, by the options that they state."""
    if settings.get("distil_from") is not None:
        return "distil-run"
    if settings.get("distil") is None:
        return otherwise
    if settings["distil"] == 0:
        return "labels"
    return "distil-last" if otherwise == "labels" else otherwise
