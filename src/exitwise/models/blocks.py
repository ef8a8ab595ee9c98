"""What MSDNet and RANet are both built from: bottleneck units, and the stem that makes maps of all scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

Maps = list[Tensor]


def bottleneck_unit(in_channels: int, out_channels: int, bottleneck: int, stride: int = 1) -> nn.Sequential:
    """1x1 convolution to ``min(in, bottleneck * out)`` channels, then 3x3; each with BatchNorm and ReLU."""
    inner = min(in_channels, bottleneck * out_channels)
    return nn.Sequential(
        Conv2dNormActivation(in_channels, inner, 1),
        Conv2dNormActivation(inner, out_channels, 3, stride=stride),
    )


def imagenet_stem(in_channels: int, channels: int) -> nn.Sequential:
    """7x7 convolution with bias and stride 2, BatchNorm, ReLU, max-pool 3/2/1."""
    convolution = Conv2dNormActivation(in_channels, channels, 7, stride=2, padding=3, bias=True)
    return nn.Sequential(*convolution, nn.MaxPool2d(3, stride=2, padding=1))


class Stem(nn.Module):
    """Maps of all scales from the image, fine to coarse, each one made from the finer.

    Args:
        in_channels: channels of the image.
        widths: channels of each map.
        kind: of the first map: ``cifar`` (3x3, stride 1) or ``imagenet`` (7x7, stride 2, max-pool).
        strides: from each map to the next; by default 2.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        kind: Literal["cifar", "imagenet"],
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice(kind, ("cifar", "imagenet"), "stem")
        build = imagenet_stem if kind == "imagenet" else partial(Conv2dNormActivation, kernel_size=3)
        first = build(in_channels, widths[0])
        steps = zip(pairwise(widths), strides or [2] * (len(widths) - 1), strict=True)
        coarser = [Conv2dNormActivation(fine, coarse, 3, stride=stride) for (fine, coarse), stride in steps]
        self.scales = nn.ModuleList([first, *coarser])

    def forward(self, images: Tensor) -> Maps:
        maps = []
        x = images
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return maps


def check_choice(value: str, allowed: tuple[str, ...], name: str) -> None:
    """Raise ValueError unless an argument is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
