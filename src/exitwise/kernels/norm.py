"""BatchNorm of channels-last tensors on a CPU, several times as fast as torch's own where channels are few.

torch's kernel works along the channels, of which a narrow layer has 6 or 12. Here a row of the image and its channels
are folded into one long line, so that elementwise operations and sums run over whole vectors, and what belongs to a
channel is repeated along the line; torch's kernels for statistics and sums of columns do the rest. Knows tensors, and
neither networks nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DisableTorchFunction  # so that no mode is asked about each small operator
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Folded(NamedTuple):
    """The statistics that normalise a batch of folded images.

    Attributes:
        mean, inverse_std: of the batch, per channel, (C).
        scale: inverse_std times weight, (C).
        lines: mean, inverse_std, scale, and shift (output = x * scale + shift), repeated along a line: (4, W * C).
    """

    mean: Tensor
    inverse_std: Tensor
    scale: Tensor
    lines: Tensor


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
    """Return whether the functions of this file are for ``x``: channels-last images on a CPU."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def is_regular(call: BatchNormCall) -> bool:
    """Return whether a call in training mode is one that torch computes: it has its own errors for others."""
    x, *channels = call[:5]
    return (
        x.dim() > 1
        and x.numel() > x.shape[1]
        and all(each is None or each.numel() == x.shape[1] for each in channels)
        and (call.running_mean is None) == (call.running_var is None)
        and call.eps > 0
    )


def fold_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Folded, Tensor]:
    """Return what normalises the batch ``x``, (B, C, H, W) and channels-last, and its biased variance per channel, (C).

    Args:
        x: what :func:`folds`.
        weight, bias: (C), or None for 1 and 0.
        eps: added to the variance.
    """
    lines, width = _fold(x)
    means, variances = torch.batch_norm_update_stats(lines, None, None, 0.0)
    between, mean = torch.var_mean(means.view(width, -1), 0, correction=0)
    variance = variances.view(width, -1).mean(0).add_(between)
    inverse_std = torch.rsqrt(variance + eps)
    scale = inverse_std if weight is None else inverse_std * weight
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    return Folded(mean, inverse_std, scale, _lines(width, mean, inverse_std, scale, shift)), variance


def normalized(x: Tensor, norm: Folded) -> Tensor:
    """BatchNorm's output in training mode for ``x``, (B, C, H, W)."""
    _, _, scale, shift = norm.lines
    output = torch.empty_like(x)  # no view, so that what follows may write to it
    torch.addcmul(shift, _fold(x)[0], scale, out=_fold(output)[0])
    return output


def jacobian_product(
    gradient: Tensor,
    x: Tensor,
    norm: Folded,
    weight_tangent: Tensor | None = None,
    bias_tangent: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm's Jacobian with respect to its input, which is symmetric, times ``gradient``.

    That is the gradient with respect to the input, or its tangent's share in the output's, to which tangents of weight
    and bias add theirs.

    Args:
        gradient: of the output, or tangent of the input: (B, C, H, W).
        x: the input.
        norm: what :func:`fold_norm` made of it.
        weight_tangent, bias_tangent: (C).

    Returns:
        The product, and the gradients with respect to weight and bias, (C).
    """
    images, width = _fold(x)
    gradients = _fold(gradient)[0]
    mean, inverse_std, scale, _ = norm.lines
    _, *sums = torch.ops.aten.native_batch_norm_backward(
        gradients, images, None, None, None, mean, inverse_std, True, 0.0, [False, True, True]
    )
    weight_gradient, bias_gradient = (each.view(width, -1).sum(0) for each in sums)
    share = norm.scale * (-x.shape[1] / x.numel())
    slope = weight_gradient * share
    if weight_tangent is not None:
        slope += weight_tangent
    slope *= norm.inverse_std
    constant = torch.addcmul(bias_gradient * share, slope, norm.mean, value=-1)
    if bias_tangent is not None:
        constant += bias_tangent
    constant, slope = _lines(width, constant, slope)
    product = torch.addcmul(constant, images, slope).addcmul_(gradients, scale)
    return _unfold(product, x), weight_gradient, bias_gradient


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` per channel, for ``x`` of any kind with channels second."""
    if not folds(x):
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape))
    lines, width = _fold(x)
    scale, shift = _lines(width, scale, shift)
    return _unfold(torch.addcmul(shift, lines, scale), x)


def batch_norm(call: BatchNormCall) -> tuple[Tensor, Folded]:
    """BatchNorm in training mode of what :func:`folds`: output and statistics; running statistics are updated."""
    x = call.input
    with DisableTorchFunction():
        output, *parts, variance = _FoldedNorm.apply(x, call.weight, call.bias, call.eps)
        norm = Folded(*parts)
        if call.running_mean is not None and call.running_var is not None:
            count = x.numel() // x.shape[1]
            call.running_mean.lerp_(norm.mean, call.momentum)
            call.running_var.lerp_(variance * (count / (count - 1)), call.momentum)
    return output, norm


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
        """Return what a call in training mode gives; None: let torch compute it."""
        raise NotImplementedError


class _FoldedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        norm, variance = fold_norm(x, weight, bias, eps)
        ctx.save_for_backward(x, *norm)
        ctx.mark_non_differentiable(*norm, variance)
        ctx.set_materialize_grads(False)
        return normalized(x, norm), *norm, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None
        x, *norm = ctx.saved_tensors
        with DisableTorchFunction():
            gradients = jacobian_product(gradient, x, Folded(*norm))
        return *(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False)), None


def _fold(x: Tensor) -> tuple[Tensor, int]:
    """(B * H, W * C), without a copy where ``x`` is channels-last, and W."""
    samples, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(samples * height, width * channels), width


def _unfold(lines: Tensor, like: Tensor) -> Tensor:
    samples, channels, height, width = like.shape
    return lines.view(samples, height, width, channels).permute(0, 3, 1, 2)


def _lines(width: int, *per_channel: Tensor) -> Tensor:
    """(N, W * C): N tensors (C), each repeated along a line."""
    return torch.stack(per_channel)[:, None].expand(-1, width, -1).flatten(1)
