"""How gradients flow between the stages of a network while it trains; what it computes stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from exitwise.catalogue.options import Options
from exitwise.models.staged import Cut


class GradientFlow:
    """Gradients as they are. A part overrides what happens to them at a cut, by the rules of
    :mod:`exitwise.kernels.gradients`: both methods return the values that they get.

    Attributes:
        options: the dataclass of its options.
        progress: share of the training that is done, in [0, 1); the trainer says it before each loaded batch.
    """

    options: ClassVar[type[Options]] = Options
    progress: float = 0.0

    @classmethod
    def from_options(cls, options: Any) -> Self:
        """Return one from an instance of :attr:`options`."""
        return cls(**vars(options))

    def to_head(self, x: Tensor, cut: Cut) -> Tensor:
        """Return a tensor of the state as a head sees it."""
        return x

    def onward(self, x: Tensor, cut: Cut) -> Tensor:
        """Return a tensor of the state as the next stage sees it."""
        return x


@contextmanager
def flowing_as_at(model: nn.Module, progress: float) -> Iterator[None]:
    """Within this context, gradients flow as they did when ``progress`` of the training was done."""
    flow = getattr(model, "flow", None)
    if flow is None:
        yield
        return
    now, flow.progress = flow.progress, progress
    try:
        yield
    finally:
        flow.progress = now
