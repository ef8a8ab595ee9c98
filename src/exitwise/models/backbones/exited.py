"""A backbone with exits, as the network of stages that everything else takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exitwise.kernels.inputs import Inputs
from exitwise.models.backbones.places import ExitPoint
from exitwise.models.staged import Stage, StagedModel


class ExitedModel(StagedModel):
    """A backbone with exits.

    Attributes:
        points: where the early exits are; the last exit is the backbone's own classifier.
        skips: whether running it stage by stage saves what lies behind an exit.
        head: kind of the early exits, ``auto`` or ``linear``; ``own`` where a function made them.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        num_classes: int,
        example: Inputs,
        points: Sequence[ExitPoint],
        skips: bool,
    ) -> None:
        super().__init__(stages, num_classes, example=example)
        self.points = tuple(points)
        self.skips = skips
        self.head = "auto"
