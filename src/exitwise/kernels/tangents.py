"""Forward-mode rules that cost less than torch's own and give the same tangents.

Two things are saved. A convolution or linear layer makes three products in forward mode, of which one is its ordinary
output: the pass that is differentiated has computed it already and can keep it, and so with concatenations and
BatchNorm's statistics. And BatchNorm's Jacobian with respect to its input is symmetric: its tangent is one call of the
fused backward kernel, or of :mod:`exitwise.kernels.norm`.

Knows torch functions and dual tensors, and nothing of networks, losses or weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from exitwise.kernels.channels_last import ChannelsLast, convolve
from exitwise.kernels.norm import (
    BatchNormCall,
    Folded,
    affine,
    batch_norm,
    fold_norm,
    folds,
    is_regular,
    jacobian_product,
    normalized,
)
from exitwise.kernels.synced_norm import SyncedNorm

_PRODUCTS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.linear})
_KEPT = _PRODUCTS | {torch.cat}


@dataclass
class Kept:
    """The traces of one call.

    Attributes:
        output: None of BatchNorm, whose output the ReLU after it writes to in most networks.
        version: the output's, to tell whether it has been written to since.
        statistics: mean and inverse standard deviation of BatchNorm, (C), or what normalised folded images; None where
            they are not known.
    """

    output: Tensor | None = None
    version: int = 0
    statistics: Folded | tuple[Tensor, Tensor] | None = None

    def keep(self, output: Tensor) -> None:
        # Compiled code is free of writes to tensors, and would return what an in-place operator makes of this one.
        self.output = output.detach().clone() if torch.compiler.is_compiling() else output.detach()
        self.version = self.output._version

    @property
    def unchanged(self) -> Tensor | None:
        """The output, unless it has been written to."""
        return None if self.output is None or self.output._version != self.version else self.output


class KeptOutputs(TorchFunctionMode):
    """Within this context, outputs of convolutions, linear layers and concatenations are kept, in order.

    Where the next operator saves its input for the backward pass, as BatchNorm and convolutions do, this costs no
    memory while the graph lives (a compiled network returns copies). On a CPU, BatchNorm in training mode leaves its
    statistics.

    Attributes:
        calls: what each call left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Kept] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if call := _batch_norm_call(func, args, kwargs):
            output, statistics = _with_statistics(call) or (func(*args, **kwargs), None)
            self.calls.append(Kept(statistics=statistics))
            return output
        output = func(*args, **kwargs)
        if func in _KEPT:
            self.calls.append(Kept())
            self.calls[-1].keep(output)
        return output


class TangentRules(TorchFunctionMode):
    """Within this context, dual tensors pass the kept functions and BatchNorm by the rules of this file.

    BatchNorm's running statistics are not updated. What a network computes under :class:`torch.no_grad` has no tangent,
    of which torch's forward mode knows nothing: gradients must be enabled where the network is called.

    Args:
        kept: what the same calls gave in the same order, at the same primal values; None to compute it anew.
    """

    def __init__(self, kept: KeptOutputs | None = None) -> None:
        super().__init__()
        self._calls = deque(() if kept is None else kept.calls)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with DisableTorchFunction():
            if not torch.is_grad_enabled():
                args, kwargs = tree_map_only(Tensor, _primal, (tuple(args), kwargs))
            if func in _KEPT:
                output = self._left().unchanged
                if func in _PRODUCTS:
                    return _product(func, output, *args, **kwargs)
                if kwargs.keys() <= {"tensors", "dim"}:  # not out=, or another name for dim
                    return _cat(output, *args, **kwargs)
            elif call := _batch_norm_call(func, args, kwargs):
                return _batch_norm(call, self._left().statistics)
            elif func is F.relu and args and (args[1:] == (True,) or kwargs == {"inplace": True}):
                return _rectify(args[0])
        return func(*args, **kwargs)

    def _left(self) -> Kept:
        return self._calls.popleft() if self._calls else Kept()


def _product(
    func: Callable[..., Tensor],
    output: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Return what a function that is linear in its input and in (weight, bias) gives for dual tensors."""
    func = convolve if func is F.conv2d else func
    (x, dx), (w, dw), (b, db) = _unpack(input), _unpack(weight), _unpack(bias)
    assert x is not None
    assert w is not None
    if output is None:
        output = func(x, w, b, *args, **kwargs)
    terms = []
    if dx is not None:
        terms.append(func(dx, w, None, *args, **kwargs))
    if dw is not None or db is not None:
        terms.append(func(x, torch.zeros_like(w) if dw is None else dw, db, *args, **kwargs))
    return _dual(output, terms)


def _cat(output: Tensor | None, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    primals, tangents = zip(*(forward_ad.unpack_dual(tensor) for tensor in tensors), strict=True)
    if output is None:
        output = torch.cat(primals, dim)
    if all(tangent is None for tangent in tangents):
        return output
    filled = [torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return forward_ad.make_dual(output, torch.cat(filled, dim))


def _batch_norm_call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> BatchNormCall | None:
    """Return the call, if it is BatchNorm's in training mode on the images of one process."""
    if func is not F.batch_norm or SyncedNorm.depth:
        return None
    call = BatchNormCall(*args, **kwargs)
    return call if call.training else None


def _with_statistics(call: BatchNormCall) -> tuple[Tensor, Folded | tuple[Tensor, Tensor]] | None:
    """BatchNorm's output and statistics; None where torch does not give them."""
    x = call.input
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    if torch.compiler.is_compiling() or not is_regular(call):
        return None
    if ChannelsLast.depth and folds(x):
        return batch_norm(call)
    output, mean, inverse_std = torch.native_batch_norm(
        x, call.weight, call.bias, call.running_mean, call.running_var, True, call.momentum, call.eps
    )
    return output, (mean, inverse_std)


def _batch_norm(call: BatchNormCall, statistics: Folded | tuple[Tensor, Tensor] | None) -> Tensor:
    (x, dx), (w, dw), (b, db) = _unpack(call.input), _unpack(call.weight), _unpack(call.bias)
    assert x is not None
    if folds(x):
        norm = statistics if isinstance(statistics, Folded) else fold_norm(x, w, b, call.eps)[0]
        output = normalized(x, norm)
        if dx is not None:
            return forward_ad.make_dual(output, jacobian_product(dx, x, norm, dw, db)[0])
        mean, inverse_std = norm.mean, norm.inverse_std
    elif statistics is None:
        output, mean, inverse_std = torch.native_batch_norm(x, w, b, None, None, True, 0.0, call.eps)
    else:
        mean, inverse_std, *_ = statistics
        scale = inverse_std if w is None else inverse_std * w  # in the kernel's own order: the same to the last bit
        output, *_ = torch.native_batch_norm(x, scale, b, mean, torch.ones_like(mean), False, 0.0, 0.0)
    terms = []
    if dx is not None:
        backward = torch.ops.aten.native_batch_norm_backward
        terms.append(backward(dx, x, w, None, None, mean, inverse_std, True, call.eps, [True, False, False])[0])
    if dw is not None or db is not None:
        scale = torch.zeros_like(mean) if dw is None else dw * inverse_std
        shift = (torch.zeros_like(mean) if db is None else db) - mean * scale
        terms.append(affine(x, scale, shift))
    return _dual(output, terms)


def _rectify(x: Tensor) -> Tensor:
    """In-place ReLU, which torch's own forward mode makes of a copy of the tangent."""
    primal, tangent = forward_ad.unpack_dual(x)
    primal.relu_()
    if tangent is not None:
        torch.ops.aten.threshold_backward.grad_input(tangent, primal, 0, grad_input=tangent)
    return x


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal


def _unpack(value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if value is None else forward_ad.unpack_dual(value)


def _dual(output: Tensor, terms: list[Tensor]) -> Tensor:
    if not terms:
        return output
    tangent = terms[0]
    for term in terms[1:]:
        tangent.add_(term)
    return forward_ad.make_dual(output, tangent)
