"""The choices that a training method is made of, each the setting of an axis.

``method``: what each sample's loss counts at each exit; ``flow``: how gradients flow between stages; ``loss``: what
exits learn from; ``regime``: what trains when; ``handed_on``: what heads know of the answer before. They combine
freely, and each brings its own options, whose names no other axis has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from exitwise.catalogue.flows import FLOWS
from exitwise.catalogue.links import LINKS
from exitwise.catalogue.losses import LOSSES, implied_loss
from exitwise.catalogue.methods import DEFAULT, METHODS
from exitwise.catalogue.parts import Part
from exitwise.catalogue.schedules import SCHEDULES


class Axis(NamedTuple):
    """What there is to choose from.

    Attributes:
        title: what the axis is about.
        parts: by name.
        usual: the name of the default.
        implied: from plain values that choose none, and what was chosen before, to the name that they mean.
    """

    title: str
    parts: Mapping[str, Part]
    usual: str
    implied: Callable[[Mapping[str, Any], str], str] = lambda settings, otherwise: otherwise


AXES = {
    "method": Axis("what each sample's loss counts at each exit", METHODS, DEFAULT),
    "flow": Axis("how gradients flow between stages", FLOWS, "plain"),
    "loss": Axis("what exits learn from", LOSSES, "labels", implied_loss),
    "regime": Axis("what trains when", SCHEDULES, "joint"),
    "handed_on": Axis("what heads are handed of the answer before", LINKS, "nothing"),
}
"""By the setting that chooses."""


class Owners(NamedTuple):
    """Who has an option: parts of one axis."""

    setting: str
    parts: list[str]

    def __str__(self) -> str:
        return f"{self.setting} {', '.join(self.parts)}"


def option_owners() -> dict[str, Owners]:
    """Return the options of the parts here, each with the parts that have it."""
    owners: dict[str, Owners] = {}
    for setting, axis in AXES.items():
        for part in axis.parts.values():
            for each in fields(part.options):
                owners.setdefault(each.name, Owners(setting, [])).parts.append(part.name)
    return owners


def chosen_in(settings: Mapping[str, Any], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the part of each axis that plain values choose; where they are silent, what was chosen before, or the
    default."""
    chosen = {}
    for setting, axis in AXES.items():
        otherwise = axis.usual if before is None else before[setting]
        chosen[setting] = settings.get(setting) or axis.implied(settings, otherwise)
    return chosen


def options_of_others(chosen: Mapping[str, str]) -> set[str]:
    """Return the names of options that are of other parts than the chosen ones alone."""
    others = {name for name, owners in option_owners().items() if chosen[owners.setting] not in owners.parts}
    return others | {"method_options"} if chosen["method"] in METHODS else others
