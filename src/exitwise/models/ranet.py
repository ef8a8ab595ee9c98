"""RANet (Yang et al., CVPR 2020): one network per resolution, the low ones first, each reusing what the last one saw.

Built from plain numbers; knows neither named sizes nor checkpoints. Exits come flow by flow, lowest resolution first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from exitwise.models.blocks import Maps, Stem, bottleneck_unit, check_choice
from exitwise.models.heads import ConvHead
from exitwise.models.staged import Stage, StagedModel


class FlowState(NamedTuple):
    """The state that flows from stage to stage.

    Attributes:
        stems: what the flows to come start from, lowest resolution first.
        kept: per block of this flow so far, its input and its layers' outputs, which the next flow's fusion blocks
            read; empty in the last flow.
        x: the flow's output so far.
    """

    stems: Maps
    kept: list[Maps]
    x: Tensor


class Place(NamedTuple):
    """Where a flow stands on the way from low to high resolution.

    Attributes:
        growth: channels that a layer adds.
        bottleneck, lower_bottleneck: bottleneck factors of this flow and of the one below.
    """

    growth: int
    bottleneck: int
    lower_bottleneck: int


class PlainBlock(nn.Module):
    """Dense layers: each adds ``growth`` channels to its input.

    Args:
        width: channels of the input.
        place: the flow's widths.
        layers: number of layers.
        transition: whether a 1x1 convolution halves the channels at the end.

    Attributes:
        widths: channels of the input and of each layer's output.
        out_channels: channels of the output.
    """

    def __init__(self, width: int, place: Place, layers: int, transition: bool) -> None:
        super().__init__()
        self.widths = [width + place.growth * j for j in range(layers + 1)]
        self.layers = nn.ModuleList(bottleneck_unit(w, place.growth, place.bottleneck) for w in self.widths[:-1])
        self.transition, self.out_channels = _transition(self.widths[-1], transition)

    def forward(self, x: Tensor, lower: Maps | None = None) -> tuple[Tensor, Maps]:
        """Return the output, and what the same block of the next flow reads."""
        kept = [x]
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
            kept.append(x)
        return self.transition(x), kept


class FusionLayer(nn.Module):
    """[its input, what the lower flow saw, what is new], all of the size of the last."""

    def __init__(self, width: int, lower_width: int, place: Place, lower: int, stride: int) -> None:
        super().__init__()
        self.same = bottleneck_unit(width, place.growth - lower, place.bottleneck, stride)
        self.lower = bottleneck_unit(lower_width, lower, place.lower_bottleneck)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        new = self.same(x)
        return torch.cat([_resized(x, new), _resized(self.lower(low), new), new], dim=1)


class FusionBlock(nn.Module):
    """Dense layers that also see the maps of the same block of the next lower resolution.

    Args:
        width: channels of the input.
        lower_widths: channels of the maps of the lower flow's block: its input and each layer's output.
        place: the flow's widths.
        compress: share of new channels that come from the lower flow.
        down: whether the last layer halves the resolution.
        transition: as in :class:`PlainBlock`, whose attributes it has too.

    Raises:
        ValueError: if no channel would come from the lower flow.
    """

    def __init__(
        self, width: int, lower_widths: Sequence[int], place: Place, compress: float, down: bool, transition: bool
    ) -> None:
        super().__init__()
        lower = math.floor(compress * place.growth)
        if lower < 1:
            raise ValueError(f"compress times growth must be at least 1; got {compress} x {place.growth}")
        layers = len(lower_widths) - 1
        self.widths = [width + place.growth * j for j in range(layers + 1)]
        self.layers = nn.ModuleList(
            FusionLayer(self.widths[j], lower_widths[j], place, lower, 2 if down and j == layers - 1 else 1)
            for j in range(layers)
        )
        last = math.floor(compress * self.widths[-1])
        self.last = Conv2dNormActivation(lower_widths[-1], last, 1)
        self.transition, self.out_channels = _transition(self.widths[-1] + last, transition)

    def forward(self, x: Tensor, lower: Maps) -> tuple[Tensor, Maps]:
        """Return the output, and what the same block of the next flow reads; ``lower`` is that of the flow below."""
        kept = [x]
        for layer, low in zip(self.layers, lower[:-1], strict=True):
            x = layer(x, low)
            kept.append(x)
        x = torch.cat([x, _resized(self.last(lower[-1]), x)], dim=1)
        return self.transition(x), kept


class FlowStage(nn.Module):
    """The body of one stage: some blocks of one flow.

    Args:
        blocks: plain blocks, and in a flow's first stage its fusion blocks before them.
        stem: in the network's first stage.
        starts: whether the flow starts here.
        hands_on: whether a flow follows.
    """

    def __init__(self, blocks: Sequence[nn.Module], stem: nn.Module | None, starts: bool, hands_on: bool) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.starts = starts
        self.hands_on = hands_on

    def forward(self, state: Tensor | FlowState) -> FlowState:
        lower: list[Maps] = []
        kept: list[Maps] = []
        if isinstance(state, Tensor):
            assert self.stem is not None
            x, *stems = self.stem(state)[::-1]
        elif self.starts:
            (x, *stems), lower = state.stems, state.kept
        else:
            stems, kept, x = state
        for b, block in enumerate(self.blocks):
            x, maps = block(x, lower[b] if b < len(lower) else None)
            if self.hands_on:
                kept = [*kept, maps]
        return FlowState(stems, kept, x)


class RANet(StagedModel):
    """RANet as a :class:`StagedModel`; the number of exits is that of the blocks of the last flow.

    Args:
        num_classes: number of classes C.
        blocks: blocks of the first flow.
        block_step: blocks that each further flow has more than the last.
        step: layers of the first block.
        step_mode: ``even``: ``step`` layers in every block; ``lin_grow``: ``step * b`` in block b.
        channels: width of the stem's finest map, before factors.
        growth: channels that a layer adds, before factors.
        growth_factors: channel factor of each flow, lowest resolution first; their number is that of the flows.
        bottleneck_factors: bottleneck factor of each flow.
        scales: per flow, over how many scales it works.
        compress: share of a fusion block's new channels that come from the flow below.
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
        blocks: int = 2,
        block_step: int = 2,
        step: int = 2,
        step_mode: Literal["even", "lin_grow"] = "lin_grow",
        channels: int = 16,
        growth: int = 6,
        growth_factors: Sequence[int] = (4, 2, 1),
        bottleneck_factors: Sequence[int] = (4, 2, 1),
        scales: Sequence[int] = (1, 2, 3),
        compress: float = 0.25,
        stem: Literal["cifar", "imagenet"] = "cifar",
        head_channels: int | None = 128,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        flows = len(growth_factors)
        check_choice(step_mode, ("even", "lin_grow"), "step_mode")
        for name, values in (("bottleneck_factors", bottleneck_factors), ("scales", scales)):
            if len(values) != flows:
                raise ValueError(f"expected {flows} {name}, one per flow; got {len(values)}")
        if blocks < 1 or block_step < 1:
            raise ValueError(f"every flow needs a block with an exit; got blocks {blocks} and block_step {block_step}")

        counts = [blocks + block_step * i for i in range(flows)]
        self.flow_blocks = counts
        widths = [channels * factor for factor in growth_factors]
        strides = [1 if a == b else 2 for a, b in zip(scales[1:], scales[:-1], strict=True)]
        maps = Stem(input_shape[0], widths[::-1], stem, strides[::-1])

        stages: list[Stage] = []
        below: list[PlainBlock | FusionBlock] = []
        for i, count in enumerate(counts):
            place = Place(growth * growth_factors[i], bottleneck_factors[i], bottleneck_factors[max(i - 1, 0)])
            down = [0, *counts[:i]][1 - scales[i] :] if scales[i] > 1 else []
            halved = [t * count // scales[i] for t in range(1, scales[i])]
            flow: list[PlainBlock | FusionBlock] = []
            width, done = widths[i], 0
            for b in range(1, count + 1):
                if b <= len(below):
                    lower = below[b - 1].widths
                    flow.append(FusionBlock(width, lower, place, compress, b in down, b in halved))
                else:
                    layers = step if step_mode == "even" else step * b
                    flow.append(PlainBlock(width, place, layers, b in halved))
                width = flow[-1].out_channels
                if b > len(below):
                    first = maps if not stages else None
                    body = FlowStage(flow[done:], first, starts=done == 0, hands_on=i < flows - 1)
                    stages.append(Stage(body, ConvHead(width, head_channels or width, num_classes)))
                    done = b
            below = flow
        _initialise(stages, maps)
        super().__init__(stages, num_classes, input_shape)

    def stage_of(self, flow: int, block: int) -> tuple[int, int]:
        """Return which stage holds a block of a flow, and at which position there; all counted from 0."""
        below = self.flow_blocks[flow - 1] if flow else 0
        first = self.flow_blocks[0] * min(flow, 1) + sum(
            self.flow_blocks[i] - self.flow_blocks[i - 1] for i in range(1, flow)
        )
        return (first, block) if block <= below else (first + block - below, 0)


def _transition(width: int, needed: bool) -> tuple[nn.Module, int]:
    return (Conv2dNormActivation(width, width // 2, 1), width // 2) if needed else (nn.Identity(), width)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def _initialise(stages: Sequence[Stage], stem: nn.Module) -> None:
    """The authors' start: normal convolutions by fan-out, linear biases 0; the stem keeps PyTorch's default."""
    default = {id(module) for module in stem.modules()}
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in default:
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
