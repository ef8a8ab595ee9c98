"""Operators on channels-last images on a CPU that are faster than torch's own, most where channels are few.

Knows tensors, and neither networks nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.autograd.function import once_differentiable

from exitwise.kernels.norm import BatchNormCall, BatchNormMode, batch_norm, folds, is_regular


class ChannelsLast(BatchNormMode):
    """Within this context, three operators are computed in another way on what :func:`folds`.

    BatchNorm in training mode is that of :mod:`exitwise.kernels.norm`, and a 1x1 convolution is a matrix product.
    Gradients reach a ReLU as dense tensors: from a concatenation they come as slices of its channels, which
    elementwise kernels read several times slower than a copy does where they are narrow.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d:
            return convolve(*args, **(kwargs or {}))
        output = super().__torch_function__(func, types, args, kwargs)
        if func is F.relu and output.requires_grad and folds(output):
            output.register_hook(_dense)
        return output

    def normalise(self, call: BatchNormCall) -> Tensor | None:
        return batch_norm(call)[0] if folds(call.input) and is_regular(call) else None


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """:func:`torch.nn.functional.conv2d`, as a matrix product where it is one of what :func:`folds`."""
    if _is_product(input, weight, bias, *args, **kwargs):
        with DisableTorchFunction():
            return _Product.apply(input, weight, bias)
    return F.conv2d(input, weight, bias, *args, **kwargs)


def _is_product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    return (
        weight.shape[1:] == (*input.shape[1:2], 1, 1)
        and len(weight) > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and groups == 1
        and stride in (1, (1, 1))
        and dilation in (1, (1, 1))
        and padding in (0, (0, 0), "valid", "same")
        and not torch.is_autocast_enabled("cpu")
        and folds(input)
    )


class _Product(torch.autograd.Function):
    """A 1x1 convolution. Results are written to tensors that are no views, to which others may be added in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        size = len(x), len(weight), *x.shape[2:]
        output = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        matrix = weight.flatten(1).t()
        if bias is None:
            torch.mm(_pixels(x), matrix, out=_pixels(output))
        else:
            torch.addmm(bias, _pixels(x), matrix, out=_pixels(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_needed, weight_needed, bias_needed = ctx.needs_input_grad
        x_gradient = weight_gradient = None
        gradients = _pixels(gradient)
        if x_needed:
            x_gradient = torch.empty_like(x)
            torch.mm(gradients, weight.flatten(1), out=_pixels(x_gradient))
        if weight_needed:
            weight_gradient = torch.mm(gradients.t(), _pixels(x)).view_as(weight)
        return x_gradient, weight_gradient, gradients.sum(0) if bias_needed else None


def _pixels(x: Tensor) -> Tensor:
    """(B * H * W, C), without a copy where ``x`` is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _dense(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous(memory_format=torch.channels_last)
