"""Weights by where samples would leave under thresholds that are drawn (He et al., COSEE, AAAI 2025). One pass."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.methods import ExitSimulatedOptions
from exitwise.methods.base import Method, Weighting
from exitwise.weighting.leaving import simulated_weights
from exitwise.weighting.passes import Batch, TrainPass


class ExitSimulated(Method):
    """Thresholds are drawn uniformly from the range that confidences had in the last epoch; in the first one, from all
    that can be. How fast weights fall off from a sample's exit grows linearly over the training, from not at all.

    Args:
        sharpness: that at the end (the authors' beta).
        threshold_draws: thresholds per half batch.
    """

    options = ExitSimulatedOptions

    def __init__(
        self,
        sharpness: float = ExitSimulatedOptions.sharpness,
        threshold_draws: int = ExitSimulatedOptions.threshold_draws,
    ) -> None:
        self.sharpness = sharpness
        self.threshold_draws = threshold_draws
        self.generator = torch.Generator().manual_seed(torch.initial_seed())
        self.range = torch.tensor([0.0, 1.0])
        self.range_so_far = _NOTHING.clone()
        """Least and greatest confidence, of the last epoch and of this one."""

    def begin(self, index: int, progress: float) -> None:
        super().begin(index, progress)
        if index == 0:
            low, high = self.range_so_far
            self.range = torch.where(low <= high, self.range_so_far, self.range)
            self.range_so_far = torch.empty_like(self.range_so_far).copy_(_NOTHING)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        confidences = forward.confidences
        low, high = self.range.to(confidences)
        drawn = torch.rand(self.threshold_draws, generator=self.generator).to(confidences)
        thresholds = low + (high - low) * drawn
        self._widen(forward)
        return Weighting(simulated_weights(confidences, thresholds, self.sharpness * self.progress))

    def _widen(self, forward: TrainPass) -> None:
        """Take the confidences of all processes into the range of this epoch, but for those that are no numbers."""
        found = forward.confidences.float()
        ends = torch.stack([found.nan_to_num(torch.inf).amin(), found.nan_to_num(-torch.inf).amax()])
        everyone, _ = forward.ranks.gather(ends[None])
        past = self.range_so_far.to(ends)
        low, high = torch.cat([everyone, past[None]]).unbind(dim=1)
        self.range_so_far = torch.stack([low.amin(), high.amax()])

    def to(self, device: torch.device) -> Self:
        self.range, self.range_so_far = self.range.to(device), self.range_so_far.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "range": self.range,
            "range_so_far": self.range_so_far,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.range = torch.empty_like(self.range).copy_(state["range"])
        self.range_so_far = torch.empty_like(self.range_so_far).copy_(state["range_so_far"])
        self.generator.set_state(state["generator"])


_NOTHING: Tensor = torch.tensor([torch.inf, -torch.inf])
