"""Mixed training (Kubaty et al., ICML 2025): the backbone and its last exit alone first, then all exits together."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.methods.base import Method, Weighting
from exitwise.weighting.gradient import Batch, TrainPass


class BackboneFirst(Method):
    """Weight 1 at the last exit and 0 at the others for some half steps, then what another method says.

    Args:
        then: the method to go on with.
        half_steps: how many half steps the backbone trains alone.
    """

    def __init__(self, then: Method, half_steps: int) -> None:
        self.then = then
        self.half_steps = half_steps
        self.done = 0
        self.optimizer = then.optimizer

    @property
    def _alone(self) -> bool:
        return self.done < self.half_steps

    def begin(self, index: int, progress: float) -> None:
        super().begin(index, progress)
        self.then.begin(index, progress)

    def takes_tangents(self, index: int) -> bool:
        return not self._alone and self.then.takes_tangents(index)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        if not self._alone:
            return self.then.weigh(model, optimizer, forward, meta, index)
        weights = torch.zeros_like(forward.losses)
        weights[:, -1] = 1
        return Weighting(weights)

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        if not self._alone:
            self.then.stepped(model, taken)
        self.done += 1

    def to(self, device: torch.device) -> Self:
        self.then.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "then": self.then.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.then.load_state_dict(state["then"])
