"""MSDNet (Huang et al., ICLR 2018): a grid of layers by scales with an exit on the coarsest scale of each block.

Built from plain numbers; knows neither named sizes nor checkpoints. The state between stages is the list of
live maps, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from exitwise.models.blocks import Maps, Stem, bottleneck_unit, check_choice
from exitwise.models.heads import ConvHead
from exitwise.models.staged import Stage, StagedModel


class ScaleGrowth(nn.Module):
    """A layer on one scale: [its map, unit of the next finer map, unit of its map].

    Args:
        same: unit on the scale's own map.
        down: strided unit on the next finer map; None on the finest scale.
    """

    def __init__(self, same: nn.Module, down: nn.Module | None = None) -> None:
        super().__init__()
        self.same = same
        self.down = down

    def forward(self, own: Tensor, finer: Tensor | None) -> Tensor:
        if self.down is None:
            return torch.cat([own, self.same(own)], dim=1)
        return torch.cat([own, self.down(finer), self.same(own)], dim=1)


class DenseLayer(nn.Module):
    """One layer: every scale that stays alive grows from its own map and the next finer one.

    Args:
        width: channels per scale before factors.
        growth: channels added per scale before factors.
        factors, bottlenecks: channel and bottleneck factors of the scales that come in.
        dropped: whether the finest scale that comes in is given up here.
    """

    def __init__(
        self, width: int, growth: int, factors: Sequence[int], bottlenecks: Sequence[int], dropped: bool
    ) -> None:
        super().__init__()

        def unit(scale: int, out_channels: int, stride: int = 1) -> nn.Module:
            return bottleneck_unit(width * factors[scale], out_channels, bottlenecks[scale], stride)

        self.scales = nn.ModuleList() if dropped else nn.ModuleList([ScaleGrowth(unit(0, growth * factors[0]))])
        for s in range(1, len(factors)):
            half = growth * factors[s] // 2
            self.scales.append(ScaleGrowth(unit(s, half), unit(s - 1, half, stride=2)))

    def forward(self, maps: Maps) -> Maps:
        finer_maps = [None, *maps[:-1]]
        alive = len(self.scales)
        return [
            scale(own, finer) for scale, own, finer in zip(self.scales, maps[-alive:], finer_maps[-alive:], strict=True)
        ]


class Transition(nn.Module):
    """1x1 convolution on every live scale."""

    def __init__(self, width_in: int, width_out: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(Conv2dNormActivation(width_in * f, width_out * f, 1) for f in factors)

    def forward(self, maps: Maps) -> Maps:
        return [scale(x) for scale, x in zip(self.scales, maps, strict=True)]


class MSDNet(StagedModel):
    """MSDNet as a :class:`StagedModel`; K blocks give K exits.

    Args:
        num_classes: number of classes C.
        blocks: number of blocks, and of exits, K.
        base: layers of the first block.
        step: layers of each later block (``even``), or their increment (``lin_grow``).
        step_mode: ``even``: ``step`` layers in blocks 2..K; ``lin_grow``: ``step * (i - 1) + 1`` in block i.
        channels: width of the finest scale after the stem, before factors.
        growth: channels that a layer adds, before factors.
        growth_factors: channel factor of each scale, fine to coarse; their number is that of the scales.
        bottleneck_factors: bottleneck factor of each scale.
        prune: when the finest scales are given up: ``max``: evenly over the layers; ``min``: in the last ones.
        stem: ``cifar`` (3x3, stride 1) or ``imagenet`` (7x7, stride 2, max-pool).
        head_channels: channels of the exits' convolutions; None: as many as their input has.
        input_shape: (channels, height, width).

    Raises:
        ValueError: for sizes that no network has, with what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        blocks: int = 5,
        base: int = 1,
        step: int = 1,
        step_mode: Literal["even", "lin_grow"] = "lin_grow",
        channels: int = 16,
        growth: int = 6,
        growth_factors: Sequence[int] = (1, 2, 4),
        bottleneck_factors: Sequence[int] = (1, 2, 4),
        prune: Literal["max", "min"] = "max",
        stem: Literal["cifar", "imagenet"] = "cifar",
        head_channels: int | None = 128,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        scales = len(growth_factors)
        check_choice(step_mode, ("even", "lin_grow"), "step_mode")
        check_choice(prune, ("max", "min"), "prune")
        if len(bottleneck_factors) != scales:
            raise ValueError(f"expected {scales} bottleneck_factors, one per scale; got {len(bottleneck_factors)}")
        if any(growth * factor % 2 for factor in growth_factors[1:]):
            raise ValueError(f"growth times factor must be even on coarser scales; got {growth} x {growth_factors}")

        depths = [base] + [step if step_mode == "even" else step * (i - 1) + 1 for i in range(2, blocks + 1)]
        total = sum(depths)
        if total < scales:
            raise ValueError(f"{scales} scales need at least {scales} layers in all; got {total}")
        stages = []
        width, layer = channels, 0
        for block, depth in enumerate(depths):
            body: list[nn.Module] = []
            if block == 0:
                body.append(Stem(input_shape[0], [channels * f for f in growth_factors], stem))
            for _ in range(depth):
                layer += 1
                before, after = live_scales(layer, total, scales, prune)
                dropped = after < before
                body.append(DenseLayer(width, growth, growth_factors[-before:], bottleneck_factors[-before:], dropped))
                width += growth
                if (dropped and prune == "max") or (prune == "min" and layer in (total // 3, 2 * total // 3)):
                    body.append(Transition(width, width // 2, growth_factors[-after:]))
                    width //= 2
            coarsest = width * growth_factors[-1]
            stages.append(Stage(nn.Sequential(*body), ConvHead(coarsest, head_channels or coarsest, num_classes)))
        super().__init__(stages, num_classes, input_shape)


def live_scales(layer: int, layers: int, scales: int, prune: str) -> tuple[int, int]:
    """Return how many scales, the coarsest ones, go into and come out of a layer (numbered from 1)."""
    if prune == "min":
        return min(scales, layers - layer + 2), min(scales, layers - layer + 1)
    interval = -(-layers // scales)
    return scales - max(0, layer - 2) // interval, scales - (layer - 1) // interval
