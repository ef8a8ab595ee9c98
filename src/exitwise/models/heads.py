"""Exit classifiers: from a stage's state to logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, Permute

from exitwise.errors import UserError
from exitwise.kernels.inputs import described


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


class Feature(NamedTuple):
    """The input of a head, besides the batch dimension.

    Attributes:
        kind: ``map`` (channels, height, width), ``channels-last map`` (height, width, channels), ``row`` (channels,
            length), ``tokens`` (tokens, channels), ``vector`` (channels), or ``unknown``: of ``size`` in all.
        channels: its number of channels.
        size: (height, width) of a map; (length,) of a row; (tokens,) of tokens; () of a vector.
        prefix: how many of the tokens stand for no part of the image, such as a class token; they come first. Of a
            text, its first token is taken for one.
        masked: whether a mask says which of the tokens are there.
        causal: whether each token sees only those before it, as in decoders.
    """

    kind: Literal["map", "channels-last map", "row", "tokens", "vector", "unknown"]
    channels: int
    size: tuple[int, ...]
    prefix: int = 0
    masked: bool = False
    causal: bool = False

    @property
    def dimension(self) -> int:
        """The dimension that holds the channels, the batch's being 0."""
        return -1 if self.kind in ("tokens", "channels-last map") else 1

    @classmethod
    def of(cls, shape: Sequence[int], prefix: int | None = None, image: tuple[int, int] = (1, 1)) -> Feature | None:
        """Return the kind of feature that a tensor of this shape (batch first) is; None if it is none.

        Height and width of a map are told from its channels by their ratio, that of ``image`` (height, width) within
        a pixel; where both readings fit, channels come first. ``prefix`` is taken to be what a square of tokens leaves
        over, if it is not given or leaves no square.
        """
        _, *rest = shape
        if len(rest) == 3:
            for kind, channels, size in (("map", rest[0], rest[1:]), ("channels-last map", rest[2], rest[:2])):
                if _has_ratio(size, image):
                    return cls(kind, channels, tuple(size))  # type: ignore[arg-type]
            return None
        if len(rest) == 2:
            if prefix is None or math.isqrt(rest[0] - prefix) ** 2 != rest[0] - prefix:
                prefix = rest[0] - math.isqrt(rest[0]) ** 2
            square = image[0] == image[1]
            if square and prefix > MOST_PREFIX:
                return None
            return cls("tokens", rest[1], (rest[0],), prefix if square else min(prefix, 1))
        return cls("vector", rest[0], ()) if len(rest) == 1 else None


MOST_PREFIX = 8
"""Class, distillation and register tokens together; with more left over beside a square, tokens are no patches."""


def _has_ratio(size: Sequence[int], image: tuple[int, int]) -> bool:
    height, width = size
    if image[0] == image[1]:
        return height == width
    return abs(height - width * image[0] / image[1]) <= 1


SMALL_STD = 1e-3
"""Standard deviation of the weights that a new classifier starts from."""


@torch.no_grad()
def start_small(classifier: nn.Parameter | Tensor) -> None:
    """Let a new classifier's weight or bias begin near zero, so that its first answers are equal probabilities.

    Libraries draw classifiers much wider: timm's EfficientNets begin with logits of standard deviation 7 for five
    classes, whose gradients undo what the layers below have learned. Not exactly zero, since some networks rectify
    their logits (SqueezeNet), and a rectified zero has no gradient.

    Args:
        classifier: changed in place; a vector (a bias) becomes zero.
    """
    if classifier.dim() > 1:
        classifier.normal_(0, SMALL_STD)
    else:
        classifier.zero_()


def _classifier(channels: int, num_classes: int) -> nn.Linear:
    linear = nn.Linear(channels, num_classes)
    for param in linear.parameters():
        start_small(param)
    return linear


HeadFactory = Callable[[Feature, int], nn.Module]
"""From a feature and the number of classes to a module that maps the one to logits (B, C)."""

HEAD_WIDTH, HEAD_MAP = (128, 256), 8
"""Least and most channels of a map head, and the largest side of the map that it sees."""


class MapHead(nn.Module):
    """Average pool to a side of at most 8, a depthwise separable 3x3 convolution, global average pool, linear.

    Costs little beside a backbone, whatever the size of the map and the number of channels.

    Args:
        feature: a map, of either layout.
        num_classes: number of classes C.
    """

    def __init__(self, feature: Feature, num_classes: int) -> None:
        super().__init__()
        width = min(max(feature.channels, HEAD_WIDTH[0]), HEAD_WIDTH[1])
        layers: list[nn.Module] = [Permute([0, 3, 1, 2])] if feature.kind == "channels-last map" else []
        window = -(-min(feature.size) // HEAD_MAP)
        if window > 1:
            layers.append(nn.AvgPool2d(window))
        self.pooling = len(layers)
        depthwise = Conv2dNormActivation(feature.channels, feature.channels, 3, groups=feature.channels)
        self.conv = nn.Sequential(*layers, depthwise, Conv2dNormActivation(feature.channels, width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = _classifier(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.classify(self.reduce(x))

    def reduce(self, x: Tensor) -> Tensor:
        """Return the pooled map (B, channels, <= 8, <= 8): what :meth:`classify` needs, without parameters."""
        return self.conv[: self.pooling](x)

    def classify(self, reduced: Tensor) -> Tensor:
        """Return logits (B, C) of what :meth:`reduce` gave."""
        return self.linear(self.pool(self.conv[self.pooling :](reduced)).flatten(1))


class LinearHead(nn.Module):
    """Global average pool, LayerNorm, linear.

    Of tokens, the class token (if any) beside the mean of the others that are there: a class token says little in the
    lower layers of a network that was trained to read it at the end, and their mean does. In a decoder the first token
    has seen nothing, and the last one that is there has seen all: it stands in the class token's place.

    Args:
        feature: what it sees.
        num_classes: number of classes C.
    """

    def __init__(self, feature: Feature, num_classes: int) -> None:
        super().__init__()
        self.feature = feature
        width = feature.channels * (2 if feature.prefix or feature.causal else 1)
        self.norm = nn.LayerNorm(width)
        self.linear = _classifier(width, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, C); ``mask`` (B, tokens) is 1 for tokens that are there."""
        return self.classify(self.reduce(x, mask))

    def classify(self, reduced: Tensor) -> Tensor:
        """Return logits (B, C) of what :meth:`reduce` gave."""
        return self.linear(self.norm(reduced))

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the pooled feature (B, width): what :meth:`classify` needs, without parameters."""
        match self.feature.kind:
            case "map":
                return x.mean((2, 3))
            case "channels-last map":
                return x.mean((1, 2))
            case "row":
                return x.mean(2)
            case "vector":
                return x
        return self._of_tokens(x, mask)

    def _of_tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rest = x[:, self.feature.prefix :]
        if mask is None:
            mean, last = rest.mean(1), x[:, -1]
        else:
            there = mask.to(x.dtype)
            weights = there[:, self.feature.prefix :, None]
            mean = (rest * weights).sum(1) / weights.sum(1).clamp(min=1)
            end = (there * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
            last = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
        if self.feature.causal:
            return torch.cat([last, mean], dim=1)
        return torch.cat([x[:, 0], mean], dim=1) if self.feature.prefix else mean


class OnState(nn.Module):
    """A head on the first of several tensors that a stage hands on.

    Args:
        head: of that tensor, and of a mask where it has an argument of that name.
        mask: which of the tensors is the mask of tokens, if there is one.
    """

    def __init__(self, head: nn.Module, mask: int | None = None) -> None:
        super().__init__()
        self.head = head
        self.mask = mask if "mask" in inspect.signature(head.forward).parameters else None

    def forward(self, state: Sequence[Tensor]) -> Tensor:
        """Return logits (B, C)."""
        return self.head(*self._seen(state))

    def reduce(self, state: Sequence[Tensor]) -> Any:
        """Return what the head needs: what it reduces its tensors to, or these themselves."""
        seen = self._seen(state)
        if hasattr(self.head, "reduce"):
            return self.head.reduce(*seen)  # type: ignore[operator]
        return seen if len(seen) > 1 else seen[0]

    def classify(self, reduced: Any) -> Tensor:
        """Return logits of what :meth:`reduce` gave."""
        return self.head.classify(reduced) if hasattr(self.head, "reduce") else self.head(reduced)  # type: ignore[operator]

    def _seen(self, state: Sequence[Tensor]) -> Sequence[Tensor]:
        return state[:1] if self.mask is None else (state[0], state[self.mask])


def suited_head(feature: Feature, num_classes: int, head: str | HeadFactory = "auto") -> nn.Module:
    """Return an exit classifier for a feature.

    Args:
        feature: what it sees.
        num_classes: number of classes C.
        head: ``auto``: :class:`MapHead` for maps, :class:`LinearHead` for the rest; ``linear``: LinearHead for
            all; or a function that makes one, which is also given the mask of tokens where its ``forward`` has an
            argument ``mask``.

    Raises:
        UserError: for another name, or a feature of unknown layout without a function.
    """
    if callable(head):
        made = head(feature, num_classes)
        if not isinstance(made, nn.Module):
            raise UserError(f"expected a module from the head function; got {described(made)}")
        return made
    if feature.kind == "unknown":
        raise UserError(
            "expected a place whose feature is a map, a row, tokens or a vector; got one of unknown layout, "
            f"(B, {', '.join(map(str, feature.size))}): only a head of your own (head=function) can see it"
        )
    if head not in ("auto", "linear"):
        raise UserError(f"head must be auto, linear or a function of (feature, num_classes); got {head!r}")
    return (MapHead if head == "auto" and "map" in feature.kind else LinearHead)(feature, num_classes)
