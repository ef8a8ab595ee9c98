"""Forward-mode rules that cost less than torch's own and give the same tangents.

Two things are saved. A convolution or linear layer makes three products in forward mode, of which one is its ordinary
output: the pass that is differentiated has computed it already and can keep it, and so with concatenations. And
BatchNorm's Jacobian with respect to its input is symmetric: its tangent is one call of the fused backward kernel, or of
:mod:`exitwise.models.norm`.

Knows torch functions and dual tensors, and nothing of networks, losses or weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode

from exitwise.models.norm import (
    BatchNormCall,
    FoldedNorm,
    Statistics,
    affine,
    batch_norm,
    folds,
    normalized,
    output_tangent,
    statistics_of,
)
from exitwise.models.synced_norm import SyncedNorm

_PRODUCTS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.linear})
_KEPT = _PRODUCTS | {torch.cat}


class KeptOutputs(TorchFunctionMode):
    """Within this context, outputs of convolutions, linear layers and concatenations are kept, in order.

    Where the next operator saves its input for the backward pass, as BatchNorm and convolutions do, this costs no
    memory while the graph lives (a compiled network returns copies). Of folded BatchNorm the statistics are kept.

    Attributes:
        statistics: of each BatchNorm in training mode, in order; None where it was not folded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Tensor, int]] = []
        self.statistics: list[Statistics | None] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if call := _batch_norm_call(func, args, kwargs):
            output, statistics = None, None
            if FoldedNorm.depth and folds(call.input):
                output, statistics = batch_norm(call)
            self.statistics.append(statistics)
            return func(*args, **kwargs) if output is None else output
        output = func(*args, **kwargs)
        if func in _KEPT:
            # Compiled code is free of writes to tensors, and would return what an in-place operator makes of this one.
            kept = output.detach().clone() if torch.compiler.is_compiling() else output.detach()
            self._kept.append((kept, kept._version))
        return output

    def unchanged(self) -> deque[Tensor | None]:
        """The outputs in order; None for those written to since."""
        return deque(output if output._version == version else None for output, version in self._kept)


class TangentRules(TorchFunctionMode):
    """Within this context, dual tensors pass the kept functions and BatchNorm by the rules of this file.

    BatchNorm's running statistics are not updated.

    Args:
        kept: what the same calls gave in the same order, at the same primal values; None to compute it anew.
    """

    def __init__(self, kept: KeptOutputs | None = None) -> None:
        super().__init__()
        self._outputs: deque[Tensor | None] = deque() if kept is None else kept.unchanged()
        self._statistics: deque[Statistics | None] = deque(() if kept is None else kept.statistics)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with DisableTorchFunction():
            if func in _KEPT:
                output = self._outputs.popleft() if self._outputs else None
                if func in _PRODUCTS:
                    return _product(func, output, *args, **kwargs)
                if kwargs.keys() <= {"tensors", "dim"}:  # not out=, or another name for dim
                    return _cat(output, *args, **kwargs)
            elif call := _batch_norm_call(func, args, kwargs):
                return _batch_norm(call, self._statistics.popleft() if self._statistics else None)
        return func(*args, **kwargs)


def _product(
    func: Callable[..., Tensor],
    output: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """A function linear in its input and in (weight, bias)."""
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
    """The call, if it is BatchNorm's in training mode on the images of one process."""
    if func is not F.batch_norm or SyncedNorm.depth:
        return None
    call = BatchNormCall(*args, **kwargs)
    return call if call.training else None


def _batch_norm(call: BatchNormCall, statistics: Statistics | None) -> Tensor:
    (x, dx), (w, dw), (b, db) = _unpack(call.input), _unpack(call.weight), _unpack(call.bias)
    eps = call.eps
    assert x is not None
    terms = []
    if folds(x):
        statistics = statistics or statistics_of(x, eps)
        output = normalized(x, w, b, statistics)
        if dx is not None:
            return forward_ad.make_dual(output, output_tangent(x, dx, w, dw, db, statistics))
        mean, inverse_std = statistics.mean, statistics.inverse_std
    else:
        output, mean, inverse_std = torch.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        if dx is not None:
            backward = torch.ops.aten.native_batch_norm_backward
            terms.append(backward(dx, x, w, None, None, mean, inverse_std, True, eps, [True, False, False])[0])
    if dw is not None or db is not None:
        scale = torch.zeros_like(mean) if dw is None else dw * inverse_std
        shift = (torch.zeros_like(mean) if db is None else db) - mean * scale
        terms.append(affine(x, scale, shift))
    return _dual(output, terms)


def _unpack(value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if value is None else forward_ad.unpack_dual(value)


def _dual(output: Tensor, terms: list[Tensor]) -> Tensor:
    if not terms:
        return output
    tangent = terms[0]
    for term in terms[1:]:
        tangent.add_(term)
    return forward_ad.make_dual(output, tangent)
