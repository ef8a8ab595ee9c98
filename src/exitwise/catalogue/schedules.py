"""What trains when, with options: the regimes that a user names."""

from __future__ import annotations

from dataclasses import dataclass

from exitwise.catalogue.lookup import by_name
from exitwise.catalogue.options import Options, Surroundings, option
from exitwise.catalogue.parts import Part

_HOME = "exitwise.methods.schedules"


@dataclass(frozen=True)
class MixedOptions(Options):
    """Options of ``mixed``."""

    backbone_epochs: int | None = option(None, "Epochs of the backbone alone.", ge=1, le=10**9)

    def check(self, around: Surroundings) -> None:
        if self.backbone_epochs is None:
            raise ValueError("regime mixed needs backbone_epochs, how long the backbone trains alone; got none")
        if around.epochs is not None and self.backbone_epochs >= around.epochs:
            raise ValueError(f"backbone_epochs must be below epochs ({around.epochs}); got {self.backbone_epochs}")


@dataclass(frozen=True)
class DeepestFirstOptions(Options):
    """Options of ``deepest-first``."""

    joined_by: float = option(0.5, "Share of the training by which all exits have joined.", gt=0, lt=1)


SCHEDULES = by_name(
    Part("joint", "all at once (default)", f"{_HOME}.base:Schedule"),
    Part("heads", "the exits alone, on a frozen backbone with pretrained weights", f"{_HOME}.base:Schedule"),
    Part("mixed", "a backbone and its last exit alone first", f"{_HOME}.backbone_first:BackboneFirst", MixedOptions),
    Part(
        "deepest-first",
        "exits join one by one, the last one first",
        f"{_HOME}.deepest_first:DeepestFirst",
        DeepestFirstOptions,
    ),
)
