"""Options of the parts of training methods as dataclasses: default, range and meaning of each, written once.

The schema of settings makes its fields from them; a part takes an instance. Needs neither torch nor pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple


def option(default: Any, description: str, **limits: float) -> Any:
    """Return a dataclass field with its meaning and its range: ``gt``, ``ge``, ``lt``, ``le``, of each number in it."""
    return field(default=default, metadata={"description": description, "limits": limits})


class Surroundings(NamedTuple):
    """The circumstances of a method in a run.

    Attributes:
        exits: number of exits of the network.
        precision: of the network's passes: ``float32``, ``tf32`` or ``bf16``.
        compile: whether these passes are compiled.
        channels_last: whether images and network are in channels-last format.
        processes: how many train together.
        flow: how gradients flow between stages.
        epochs: passes over the training images; None: not known.
    """

    exits: int
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    processes: int = 1
    flow: str = "plain"
    epochs: int | None = None


@dataclass(frozen=True)
class Options:
    """The options of a part of a training method, none here; and what may be known of it before its code is imported.

    Attributes:
        weighs_alone: each sample's weights depend on nothing but that sample, and nothing is learned from a meta half,
            so that a half batch may be weighed part by part (``accumulate``).
        one_class: it asks for the class of each sample, which mixed ones have not.
        looks_ahead: it differentiates the optimizer's update, which must be what the look-ahead takes it for.
    """

    weighs_alone: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    one_class: ClassVar[bool] = False

    def check(self, around: Surroundings) -> None:
        """Raise ValueError if the options do not suit a run."""
