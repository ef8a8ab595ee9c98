"""cascade.json: of which trained networks a run is a cascade, and how each sees the input. Its weights are in the run's
checkpoint, once each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from exitwise.models.cascade import View
from exitwise.settings.schema import Settings, resolve
from exitwise.storage.record import Record


class Members(NamedTuple):
    """The networks of a cascade.

    Attributes:
        networks: settings of the runs that they come from, with exits where they are; each run once.
        order: which of these each network in the cascade is.
        views: how each sees the input.
        all_exits: whether each exit of a network is one of the cascade; else its last exit alone.
    """

    networks: tuple[Settings, ...]
    order: tuple[int, ...]
    views: tuple[View, ...]
    all_exits: bool

    @property
    def exits(self) -> int:
        """Number of exits of the cascade."""
        return sum(self.networks[number].exit_count if self.all_exits else 1 for number in self.order)

    @property
    def names(self) -> list[str]:
        """Return what each network is, such as ``timm/resnet18 at 96x96``."""
        sizes = ("x".join(map(str, view.size or ())) for view in self.views)
        return [f"{self.networks[number].model} at {size}" for number, size in zip(self.order, sizes, strict=True)]


def _encode(members: Members) -> dict[str, Any]:
    return {
        "networks": [settings.stated() for settings in members.networks],
        "stages": [
            {"network": number, **view._asdict()} for number, view in zip(members.order, members.views, strict=True)
        ],
        "exits": "all" if members.all_exits else "last",
    }


def _decode(content: dict[str, Any], version: int) -> Members:
    networks = tuple(resolve(values) for values in content["networks"])
    stages: list[Mapping[str, Any]] = content["stages"]
    order = tuple(stage["network"] for stage in stages)
    if not all(isinstance(number, int) and 0 <= number < len(networks) for number in order) or len(order) < 2:
        raise ValueError(f"stages {stages!r}")
    if content["exits"] not in ("all", "last"):
        raise ValueError(f"exits {content['exits']!r}")
    views = tuple(
        View((int(stage["size"][0]), int(stage["size"][1])), *(tuple(map(float, stage[k])) for k in ("mean", "std")))
        for stage in stages
    )
    return Members(networks, order, views, content["exits"] == "all")


CASCADE: Record[Members] = Record(
    "cascade.json", "exitwise/cascade", _encode, _decode, expected="the networks of a cascade and their stages"
)
