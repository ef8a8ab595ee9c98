"""A network left whole, whose exits are evaluated together: it saves nothing, and needs no trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exitwise.kernels.flops import flop_counter
from exitwise.kernels.inputs import MASK, Inputs, batch_of
from exitwise.kernels.modes import evaluating
from exitwise.models.backbones.backbone import answer, last_tensor
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.places import (
    CHEAPEST,
    DEAREST,
    ExitPoint,
    Place,
    block_names,
    choose,
    feature_at,
    looking_back,
)
from exitwise.models.heads import HeadFactory, OnState, suited_head
from exitwise.models.staged import Stage, State


class _Together(nn.Module):
    """The body of the first stage of a network that is left whole: the backbone, and what its exits see."""

    def __init__(self, backbone: nn.Module, names: Sequence[str], masked: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = tuple(names)
        self.masked = masked

    def forward(self, inputs: Inputs) -> list[Tensor]:
        seen: dict[str, Tensor] = {}
        hooks = [self.backbone.get_submodule(name).register_forward_hook(_record(seen, name)) for name in self.names]
        try:
            logits = answer(self.backbone, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return [*(seen[name] for name in self.names), logits, *([inputs[MASK]] if self.masked else [])]


def _record(seen: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen[name] = last_tensor(output)

    return hook


class _Drop(nn.Module):
    """The body of a later stage of such a network: what the exit before it saw is done with."""

    def forward(self, state: State) -> State:
        return state[1:]


def left_whole(
    backbone: nn.Module,
    exits: int,
    at: Sequence[str] | None,
    num_classes: int,
    head: str | HeadFactory,
    example: Inputs,
) -> ExitedModel:
    places = places_left_whole(backbone, example)
    if at is None and places:  # of modules within modules, the outer ones
        depth = min(name.count(".") for name in places)
        useful = [name for name, place in places.items() if CHEAPEST <= place.point.share <= DEAREST]
        while sum(name.count(".") <= depth for name in useful) < exits - 1 and depth < 9:
            depth += 1
        places = {name: place for name, place in places.items() if name.count(".") <= depth}
    points = choose(places, exits, at, "")
    masked = any(point.feature.masked for point in points)
    first = _Together(backbone, [point.name for point in points], masked)
    points = looking_back(points, first, example, next(backbone.parameters()))
    like = next(backbone.parameters())
    heads = [
        OnState(suited_head(point.feature, num_classes, head).to(like.dtype), -1 if point.feature.masked else None)
        for point in points
    ]
    bodies: list[nn.Module] = [first, *(_Drop() for _ in points)]
    stages = [Stage(body, each) for body, each in zip(bodies, [*heads, OnState(nn.Identity())], strict=True)]
    return ExitedModel(stages, num_classes, example, points, skips=False)


def places_left_whole(backbone: nn.Module, example: Inputs) -> dict[str, Place]:
    """As :func:`find_places`, by watching what submodules return: exits can go after any that returns a feature."""
    seen: list[tuple[str, Any, int]] = []

    def watch(name: str) -> Any:
        return lambda module, args, output: seen.append((name, last_tensor(output), counter.get_total_flops()))

    hooks = [module.register_forward_hook(watch(name)) for name, module in backbone.named_modules() if name]
    inputs = batch_of(example, 1, next(backbone.parameters()))
    try:
        with torch.no_grad(), evaluating(backbone), flop_counter() as counter:
            answer(backbone, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops()
    calls = Counter(name for name, *_ in seen)
    places: dict[str, Place] = {}
    blocks = block_names(backbone)
    for name, output, spent in seen:
        feature = feature_at(backbone, name, output.shape, example) if isinstance(output, Tensor) else None
        if feature is not None and calls[name] == 1 and 0 < spent < total:
            places[name] = Place(ExitPoint(name, spent / total, feature), None, name in blocks)
    return places
