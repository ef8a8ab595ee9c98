"""A backbone with exits, as the network of stages that everything else takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs
from exitwise.models.backbones.places import ExitPoint
from exitwise.models.backbones.tracing import ReadAttribute
from exitwise.models.staged import Stage, StagedModel


class AsTraced:
    """A hook before a traced network's first part: raises UserError where a value that the trace has read from an
    attribute is another now, and the network would no longer be the one that exits were put on."""

    def __init__(self, read: Sequence[ReadAttribute]) -> None:
        self.read = list(read)

    def __call__(self, part: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for module, name, attribute, value in self.read:
            now = module.__dict__.get(attribute)
            if now is not value and now != value:
                raise UserError(
                    f"expected {f'{name}.{attribute}'.strip('.')} as it was when exits were added, {value!r}; got "
                    f"{now!r} (add exits again, or with skip=False, which follows it)"
                )


class ExitedModel(StagedModel):
    """A backbone with exits.

    Attributes:
        points: where the early exits are; the last exit is the backbone's own classifier.
        skips: whether running it stage by stage saves what lies behind an exit.
        head: kind of the early exits, ``auto`` or ``linear``; ``own`` where a function made them.
        made: digests of the early exits' parameters before any training; none where a function made them, which may
            have trained them.
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
        self.made: list[bytes] = []

    def digests(self) -> list[bytes]:
        """Return one of each early exit's parameters."""
        found = []
        for stage in cast("list[Stage]", list(self.stages)[:-1]):
            digest = hashlib.blake2b()
            for param in stage.head.parameters():
                digest.update(param.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            found.append(digest.digest())
        return found

    def as_made(self) -> list[int]:
        """Return the early exits, from 1, that nothing has trained: their parameters are as they were made."""
        pairs = zip(self.made, self.digests(), strict=False)
        return [number for number, (made, now) in enumerate(pairs, start=1) if made == now]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module; the names that earlier versions gave to layers within a stage, ``conv1_0``, are known."""
        own = {name.replace(".", "_"): name for name in self.state_dict()}
        if not state_dict.keys() <= set(own.values()):
            state_dict = {own.get(name.replace(".", "_"), name): value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)
