"""Ordinary multi-exit training: every sample has the same weight at an exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer

from exitwise.budgets import check_count
from exitwise.catalogue.methods import UniformOptions
from exitwise.methods.base import Method, Weighting
from exitwise.weighting.normalize import uniform_weights
from exitwise.weighting.passes import Batch, TrainPass


class Uniform(Method):
    """Weight 1 for every sample at every exit, or one weight per exit.

    Args:
        exit_weights: K numbers; None for 1 throughout.
    """

    options = UniformOptions

    def __init__(self, exit_weights: Sequence[float] | None = None) -> None:
        self.exit_weights = None if exit_weights is None else torch.tensor(exit_weights)

    def check(self, exits: int) -> None:
        check_count("exit_weights", None if self.exit_weights is None else self.exit_weights.tolist(), exits)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        return Weighting(uniform_weights(forward.losses.detach(), self.exit_weights))

    def to(self, device: torch.device) -> Self:
        if self.exit_weights is not None:
            self.exit_weights = self.exit_weights.to(device)
        return self
