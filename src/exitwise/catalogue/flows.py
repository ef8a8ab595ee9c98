"""How gradients flow between the stages of a network while it trains, with options. What it computes stays the same."""

from __future__ import annotations

from dataclasses import dataclass

from exitwise.catalogue.lookup import by_name
from exitwise.catalogue.options import Options, option
from exitwise.catalogue.parts import Part

_HOME = "exitwise.methods.flow"


@dataclass(frozen=True)
class PartitionOptions(Options):
    """Options of ``partition``."""

    shared_channels: float = option(
        0.5, "Share of each state's channels that later exits may change; its own exit sees all.", gt=0, le=1
    )


@dataclass(frozen=True)
class DetachedOptions(Options):
    """Options of ``detached``."""

    detached_share: float = option(
        0.5, "Share of the training, from its start, in which early exits do not change the layers below.", gt=0, le=1
    )


FLOWS = by_name(
    Part("plain", "gradients as they are (default)", f"{_HOME}.base:GradientFlow"),
    Part(
        "equilibrium",
        "each layer gets the mean of the gradients of the exits behind it (IMTA)",
        f"{_HOME}.equilibrium:Equilibrium",
    ),
    Part(
        "partition",
        "later exits change a part of the channels alone (Deep Feature Surgery)",
        f"{_HOME}.partition:Partition",
        PartitionOptions,
    ),
    Part(
        "detached",
        "early exits do not change the layers below, for a share of the training",
        f"{_HOME}.detached:Detached",
        DetachedOptions,
    ),
)
