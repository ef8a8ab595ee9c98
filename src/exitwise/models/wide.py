"""A wide, shallow residual network: few large convolutions, an exit after each block.

In the manner of networks that learn CIFAR-10 in seconds on a GPU (Page, 2018; Jordan, 2024); of images, and of signals,
which are carried as images of one row. Built from plain numbers; knows neither named sizes nor data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from exitwise.models.staged import Stage, StagedModel


class WideBlock(nn.Module):
    """A convolution to another width and, after a pool that halves the map, one whose result is added to its input.

    Args:
        in_channels, channels: of the map before and after.
        kernel: height and width of the convolutions.
        halved: whether there is a pool; rows of one stay one.
    """

    def __init__(self, in_channels: int, channels: int, kernel: tuple[int, int], halved: bool) -> None:
        super().__init__()
        pool = tuple(min(2, side) if halved else 1 for side in kernel)
        padding = kernel[0] // 2, kernel[1] // 2
        self.widen = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel, padding=padding, bias=False),
            nn.MaxPool2d(pool) if halved else nn.Identity(),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.residual = Conv2dNormActivation(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return x + self.residual(x)


class PooledHead(nn.Module):
    """LayerNorm and linear on the mean and the largest value of each channel.

    Args:
        channels: of the map.
        num_classes: number of classes C.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.linear = nn.Linear(2 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of a map (B, channels, height, width)."""
        return self.linear(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))


class Wide(StagedModel):
    """A convolution, then blocks with an exit each.

    Args:
        num_classes: number of classes C.
        widths: channels of the first convolution, then of each block, of which there are as many as exits.
        halved: of which blocks the map is halved; by default of all.
        kernel: side of the convolutions.
        input_shape: (channels, height, width); of signals the height is 1.

    Raises:
        ValueError: for images or signals too small to be halved so often.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 256),
        halved: Sequence[bool] | None = None,
        kernel: int = 3,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        sides = min(kernel, 2 * input_shape[1] - 1), kernel
        first = Conv2dNormActivation(input_shape[0], widths[0], sides)
        halvings = [True] * (len(widths) - 1) if halved is None else halved
        least = 2 ** sum(halvings)
        if any(1 < side < least for side in input_shape[1:]):
            raise ValueError(
                f"expected sides of {least} or more, which are halved {sum(halvings)} times; got {input_shape}"
            )
        stages = []
        for number, (before, after) in enumerate(pairwise(widths)):
            block: nn.Module = WideBlock(before, after, sides, halvings[number])
            stages.append(Stage(nn.Sequential(first, block) if number == 0 else block, PooledHead(after, num_classes)))
        super().__init__(stages, num_classes, input_shape)
