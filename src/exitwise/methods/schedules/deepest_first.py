"""Exits that join the training one by one, the deepest first (the gradual curriculum of LayerSkip, ACL 2024)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.schedules import DeepestFirstOptions
from exitwise.methods.base import Method, Weighting
from exitwise.methods.schedules.base import Schedule
from exitwise.weighting.passes import Batch, TrainPass


class DeepestFirst(Schedule):
    """The last exit trains from the start, and the first one from ``joined_by`` of the training on; those between join
    at equal intervals. An exit that has not joined counts 0, the others as the method says.

    Args:
        then: the method.
        joined_by: share of the training.
    """

    options = DeepestFirstOptions

    def __init__(self, then: Method, joined_by: float = DeepestFirstOptions.joined_by) -> None:
        super().__init__(then)
        self.joined_by = joined_by

    @classmethod
    def around(cls, then: Method, options: DeepestFirstOptions, batches_per_epoch: int) -> Method:
        return cls(then, options.joined_by)

    def joined(self, exits: int) -> Tensor:
        """Return which exits train now, (K), as 1 and 0."""
        joins_at = torch.linspace(self.joined_by, 0, exits, dtype=torch.float64) if exits > 1 else torch.zeros(1)
        return (joins_at <= self.progress).double()

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        counts = self.joined(forward.losses.shape[1]).to(forward.losses)
        weighting = super().weigh(model, optimizer, replace(forward, counts=counts), meta, index)
        return weighting._replace(weights=weighting.weights * counts)
