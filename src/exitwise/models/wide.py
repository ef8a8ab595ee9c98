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
        convolution: sides of a convolution with a stride of 2, to twice the channels, that comes first; None: none.
    """

    def __init__(self, channels: int, num_classes: int, convolution: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.own: nn.Module = nn.Identity()
        if convolution is not None:
            self.own = Conv2dNormActivation(channels, 2 * channels, convolution, 2)
            channels *= 2
        self.norm = nn.LayerNorm(2 * channels)
        self.linear = nn.Linear(2 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of a map (B, channels, height, width)."""
        x = self.own(x)
        return self.linear(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))


class Wide(StagedModel):
    """A convolution, then blocks with an exit each.

    Args:
        num_classes: number of classes C.
        widths: channels of the first convolution, then of each block, of which there are as many as exits.
        halved: of which blocks the map is halved; by default of all.
        kernel: side of the convolutions.
        head_convolutions: whether all heads but the last begin with a convolution of their own.
        identity: start with convolutions that hand on what they get: the first answers to brightness, edges and colours
            (:func:`cosine_filters`), the others repeat their input in the first of their channels, and chance gives the
            rest (after Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024).
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
        head_convolutions: bool = False,
        identity: bool = False,
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
            own = sides if head_convolutions and number < len(halvings) - 1 else None
            stages.append(
                Stage(nn.Sequential(first, block) if number == 0 else block, PooledHead(after, num_classes, own))
            )
        super().__init__(stages, num_classes, input_shape)
        if identity:
            self._start_alike()

    @torch.no_grad()
    def _start_alike(self) -> None:
        first, *others = (module for module in self.modules() if isinstance(module, nn.Conv2d))
        filters = cosine_filters(first.weight.shape[1:])[: len(first.weight) // 2]
        first.weight[: 2 * len(filters)] = torch.cat([filters, -filters])
        for convolution in others:
            nn.init.dirac_(convolution.weight[: convolution.in_channels])


def cosine_filters(shape: Sequence[int]) -> Tensor:
    """Return the cosine basis of patches, the smoothest first, each of norm 1: (N, channels, height, width).

    The main components of patches of photographs are near to it (Ahmed, Natarajan and Rao, 1974): brightness, then
    edges and differences of colours.

    Args:
        shape: of a patch: channels, height, width.
    """
    axes = [torch.cos(torch.pi / side * (torch.arange(side) + 0.5) * torch.arange(side)[:, None]) for side in shape]
    basis = torch.einsum("ax,by,cz->abcxyz", *axes).flatten(0, 2)
    order = torch.cartesian_prod(*(torch.arange(side) for side in shape)).sum(1).argsort(stable=True)
    return basis[order] / basis[order].flatten(1).norm(dim=1)[:, None, None, None]
