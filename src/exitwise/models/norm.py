"""BatchNorm of channels-last tensors on a CPU, several times as fast as torch's own where channels are few.

torch's kernel works along the channels, of which a narrow layer has 6 or 12. Here a row of the image and its channels
are folded into one long line, so that elementwise operations and sums run over whole vectors, and what belongs to a
channel is repeated along the line. Knows tensors, and neither networks nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Statistics(NamedTuple):
    """Mean, biased variance and inverse standard deviation per channel, each (C)."""

    mean: Tensor
    variance: Tensor
    inverse_std: Tensor


class BatchNormCall(NamedTuple):
    """Arguments of :func:`torch.nn.functional.batch_norm`, with its defaults."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def folds(x: Tensor) -> bool:
    """Whether the functions of this file are for ``x``: channels-last images on a CPU."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Statistics]:
    """BatchNorm's output in training mode, and the statistics of the batch.

    Args:
        x: (B, C, H, W), channels-last.
        weight, bias: (C), or None for 1 and 0.
        eps: added to the variance.
    """
    lines, width = _fold(x)
    count = len(lines) * width
    mean = _per_channel(lines.sum(0), width) / count
    output = torch.empty_like(x)  # not a view, so that what follows may write to it
    centred = torch.sub(lines, _line(mean, width), out=_fold(output)[0])
    variance = _per_channel((centred * centred).sum(0), width) / count
    inverse_std = torch.rsqrt(variance + eps)
    centred.mul_(_line(inverse_std if weight is None else inverse_std * weight, width))
    if bias is not None:
        centred.add_(_line(bias, width))
    return output, Statistics(mean, variance, inverse_std)


def input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor | None, statistics: Statistics
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to input, weight and bias.

    BatchNorm's Jacobian with respect to its input is symmetric: given a tangent of the input in place of a gradient,
    the first result is the tangent of the output.
    """
    lines, width = _fold(x)
    grads, _ = _fold(gradient)
    count = len(lines) * width
    mean, _, inverse_std = statistics
    bias_gradient = _per_channel(grads.sum(0), width)
    weight_gradient = _per_channel((lines - _line(mean, width)).mul_(grads).sum(0), width) * inverse_std
    scale = inverse_std if weight is None else inverse_std * weight
    slope = -scale * inverse_std * weight_gradient / count
    constant = -scale * bias_gradient / count - slope * mean
    constant, slope, scale = _line(torch.stack([constant, slope, scale]), width)
    result = torch.addcmul(constant, lines, slope).addcmul_(grads, scale)
    return _unfold(result, x), weight_gradient, bias_gradient


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` per channel, for ``x`` of any kind with channels second."""
    if not folds(x):
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape))
    lines, width = _fold(x)
    scale, shift = _line(torch.stack([scale, shift]), width)
    return _unfold(torch.addcmul(shift, lines, scale), x)


class BatchNormMode(TorchFunctionMode):
    """Within this context, BatchNorm in training mode is computed by :meth:`normalise`.

    It cannot be differentiated twice.

    Attributes:
        depth: how many contexts of a subclass are open.
    """

    depth = 0

    def __enter__(self) -> Self:
        type(self).depth += 1
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        type(self).depth -= 1
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            call = BatchNormCall(*args, **(kwargs or {}))
            result = self.normalise(call) if call.training else None
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def normalise(self, call: BatchNormCall) -> Tensor | None:
        """What a call in training mode gives; None: let torch compute it."""
        raise NotImplementedError


class FoldedNorm(BatchNormMode):
    """Within this context, BatchNorm in training mode is computed by this file wherever :func:`folds` says so."""

    def normalise(self, call: BatchNormCall) -> Tensor | None:
        return _batch_norm(call) if folds(call.input) else None


def _batch_norm(call: BatchNormCall) -> Tensor:
    x = call.input
    output, mean, variance = _Folded.apply(x, call.weight, call.bias, call.eps)
    if call.running_mean is not None and call.running_var is not None:
        count = x.numel() // x.shape[1]
        call.running_mean.lerp_(mean, call.momentum)
        call.running_var.lerp_(variance * (count / (count - 1)), call.momentum)
    return output


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, statistics = normalized(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, *statistics)
        ctx.mark_non_differentiable(statistics.mean, statistics.variance)
        return output, statistics.mean, statistics.variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        gradients = input_gradient(gradient, x, weight, Statistics(*statistics))
        return *(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False)), None


def _fold(x: Tensor) -> tuple[Tensor, int]:
    """(B * H, W * C), without a copy where ``x`` is channels-last, and W."""
    samples, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(samples * height, width * channels), width


def _unfold(lines: Tensor, like: Tensor) -> Tensor:
    samples, channels, height, width = like.shape
    return lines.view(samples, height, width, channels).permute(0, 3, 1, 2)


def _line(per_channel: Tensor, width: int) -> Tensor:
    """(..., C), repeated to (..., W * C)."""
    return per_channel.repeat(*[1] * (per_channel.dim() - 1), width)


def _per_channel(line: Tensor, width: int) -> Tensor:
    return line.view(width, -1).sum(0)
