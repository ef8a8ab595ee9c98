"""Weights for the exits that a sample still needs, deeper ones counting more over the training (CGT). One pass."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.methods import CapabilityGatedOptions
from exitwise.methods.base import Method, Weighting
from exitwise.weighting.leaving import gated_weights
from exitwise.weighting.passes import Batch, TrainPass


class CapabilityGated(Method):
    """A sample counts at an exit as far as no earlier one could have answered it (arXiv 2509.17885).

    Exits count by an importance besides, which moves linearly over the training from early to late ones.

    Args:
        gate: ``hard``: an exit that is right and sure enough keeps a sample from those after it; ``soft``: as far as it
            is sure of the right class (our reading of the paper).
        gate_confidence: how sure, for ``hard``.
        gate_floor: what every sample counts at every exit.
    """

    options = CapabilityGatedOptions

    def __init__(
        self,
        gate: Literal["hard", "soft"] = CapabilityGatedOptions.gate,
        gate_confidence: float = CapabilityGatedOptions.gate_confidence,
        gate_floor: float = CapabilityGatedOptions.gate_floor,
    ) -> None:
        self.threshold = gate_confidence if gate == "hard" else None
        self.floor = gate_floor

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        logits = forward.logits.detach()
        importance = exit_importance(logits.shape[1], self.progress).to(logits)
        return Weighting(gated_weights(logits, forward.targets, importance, self.floor, self.threshold))


START, END = (1.0, 0.1), (0.2, 1.0)
"""Importance of the first and the last exit."""

OF_FOUR = (1.0, 0.7, 0.4, 0.1), (0.2, 0.5, 0.8, 1.0)
"""Of four exits, as published; others have equal steps between the same ends."""


def exit_importance(exits: int, progress: float) -> Tensor:
    """Return how much each exit counts when ``progress`` of the training is done, (K), in float64."""
    start, end = (
        torch.tensor(published, dtype=torch.float64)
        if exits == 4
        else torch.linspace(*ends, exits, dtype=torch.float64)
        for published, ends in zip(OF_FOUR, (START, END), strict=True)
    )
    return start + progress * (end - start)
