"""Exit classifiers: from a stage's state to logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class ConvHead(nn.Module):
    """Two 3x3 convolutions with stride 2, global average pool, linear: the exit of MSDNet and RANet.

    At the published image sizes the map is 2x2 when it is pooled, so that the global pool is the
    authors' average pool of 2.

    Args:
        in_channels: channels of the map.
        channels: channels of both convolutions.
        num_classes: number of classes C.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            Conv2dNormActivation(in_channels, channels, 3, stride=2),
            Conv2dNormActivation(channels, channels, 3, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Logits (B, C) from the last, coarsest, of the maps."""
        return self.linear(self.pool(self.convs(scales[-1])).flatten(1))
