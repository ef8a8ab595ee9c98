"""What heads are handed of the answer before, with options. It is part of the network, and stays when it runs."""

from __future__ import annotations

from dataclasses import dataclass

from exitwise.catalogue.lookup import by_name
from exitwise.catalogue.options import Options, option
from exitwise.catalogue.parts import Part

_HOME = "exitwise.models.links"


@dataclass(frozen=True)
class BoostingOptions(Options):
    """Options of ``boosting``."""

    boost: float = option(0.5, "How much the answer before counts.", gt=0)


LINKS = by_name(
    Part("nothing", "each head answers by itself (default)", "exitwise.models.staged:Stage"),
    Part("boosting", "heads add to the answer before, as it stands (BoostNet)", f"{_HOME}:Boosting", BoostingOptions),
    Part("collaboration", "heads see the answer before beside their feature (IMTA)", f"{_HOME}:Collaboration"),
    Part("cascaded", "the same, without changing the head before (Zero Time Waste)", f"{_HOME}:Cascaded"),
)
