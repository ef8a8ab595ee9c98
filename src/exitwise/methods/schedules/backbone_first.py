"""Mixed training (Kubaty et al., ICML 2025): the backbone and its last exit alone first, then all exits together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.schedules import MixedOptions
from exitwise.methods.base import Method, Weighting
from exitwise.methods.schedules.base import Schedule
from exitwise.weighting.passes import Batch, TrainPass


class BackboneFirst(Schedule):
    """Weight 1 at the last exit and 0 at the others for some half steps, then what another method says.

    Args:
        then: the method to go on with.
        half_steps: how many half steps the backbone trains alone.
    """

    options = MixedOptions

    def __init__(self, then: Method, half_steps: int) -> None:
        super().__init__(then)
        self.half_steps = half_steps
        self.done = 0

    @classmethod
    def around(cls, then: Method, options: MixedOptions, batches_per_epoch: int) -> Method:
        assert options.backbone_epochs is not None
        return cls(then, 2 * options.backbone_epochs * batches_per_epoch)

    @property
    def _alone(self) -> bool:
        return self.done < self.half_steps

    def takes_tangents(self, index: int) -> bool:
        return not self._alone and super().takes_tangents(index)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        if not self._alone:
            return super().weigh(model, optimizer, forward, meta, index)
        weights = torch.zeros_like(forward.losses)
        weights[:, -1] = 1
        return Weighting(weights)

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        if not self._alone:
            super().stepped(model, taken)
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.done = state["done"]
