"""One weight per exit by a rule: more for later exits, for earlier ones, or for dearer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.methods import ByExitOptions
from exitwise.errors import UserError
from exitwise.methods.base import Method, Weighting
from exitwise.models.staged import StagedModel
from exitwise.weighting.passes import Batch, TrainPass

Rule = Literal["increasing", "decreasing", "macs"]


class ByExit(Method):
    """Weights k / mean k at exit k from 1 (BERxiT's), in the opposite order, or in proportion to MACs.

    Args:
        exit_rule: ``increasing``, ``decreasing`` or ``macs``.
    """

    options = ByExitOptions

    def __init__(self, exit_rule: Rule = ByExitOptions.exit_rule) -> None:
        self.exit_rule: Rule = exit_rule
        self._weights: Tensor | None = None

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        if self._weights is None:
            counts = torch.tensor(_COUNTS[self.exit_rule](model, forward.losses.shape[1]), dtype=torch.float64)
            self._weights = (counts / counts.mean()).to(forward.losses)
        return Weighting(self._weights.expand_as(forward.losses))


def _macs(model: Any, exits: int) -> list[int]:
    if not isinstance(model, StagedModel):
        raise UserError(f"expected a network of stages, whose MACs are counted; got a {type(model).__name__}")
    return list(model.exit_macs)


_COUNTS: dict[Rule, Callable[[Any, int], list[int]]] = {
    "increasing": lambda model, exits: list(range(1, exits + 1)),
    "decreasing": lambda model, exits: list(range(exits, 0, -1)),
    "macs": _macs,
}
