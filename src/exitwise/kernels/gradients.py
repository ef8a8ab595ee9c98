"""Identities whose backward pass is another: a gradient that is scaled, cut, or let through in some channels alone.

Each rule is linear in the gradient, and forward mode follows its transpose: where a gradient is scaled, so is the
tangent. That keeps directional derivatives of a loss what its changed gradient multiplies to. Knows tensors, and
neither networks nor training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from exitwise.shapes import Shaped


class _Rules:
    """How these rules are meant at the time, for all threads: backward passes may run in others."""

    mode: ClassVar[Literal["followed", "left out", "refused"]] = "followed"


@contextmanager
def unchanged_gradients() -> Iterator[None]:
    """Within this context, gradients pass as they are: of what is computed in it, and in backward passes over what was
    computed before."""
    yield from _in_mode("left out")


@contextmanager
def no_changed_gradients() -> Iterator[None]:
    """Within this context, a network with a changed backward pass raises ValueError: differences do not see it."""
    yield from _in_mode("refused")


def _in_mode(mode: Literal["left out", "refused"]) -> Iterator[None]:
    before = _Rules.mode
    _Rules.mode = mode
    try:
        yield
    finally:
        _Rules.mode = before


def scaled(x: Shaped[Tensor, ...], scale: float) -> Shaped[Tensor, ...]:
    """Return ``x``, whose gradient counts ``scale``; 0 cuts it."""
    return x if scale == 1 else _passed(x, scale)


def in_part(x: Shaped[Tensor, ...], share: float, dimension: int = 1) -> Shaped[Tensor, ...]:
    """Return ``x``, with a gradient for the first ``share`` of its channels alone, for one at least.

    Args:
        x: batch first.
        share: of the channels.
        dimension: that of the channels.
    """
    channels = x.shape[dimension]
    let_through = max(1, round(share * channels))
    if let_through >= channels:
        return x
    mask = torch.zeros(channels, dtype=x.dtype, device=x.device)
    mask[:let_through] = 1
    shape = [1] * x.dim()
    shape[dimension] = channels
    return _passed(x, mask.view(shape))


def _passed(x: Tensor, factor: Tensor | float) -> Tensor:
    if _Rules.mode == "refused":
        raise ValueError(
            "finite differences do not see a changed backward pass (flow): use gradient forward, which is exact"
        )
    if _Rules.mode == "left out" or not x.is_floating_point():
        return x
    passed: Tensor = _Passed.apply(x, factor)
    return passed


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.detach()  # the same memory, and yet no view, of which forward mode would ask for the same tangent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        if _Rules.mode == "left out":
            return gradient, None
        cut = isinstance(ctx.factor, float | int) and ctx.factor == 0
        return None if cut else gradient * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent * ctx.factor
