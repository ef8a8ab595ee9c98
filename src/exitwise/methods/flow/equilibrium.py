"""Gradient equilibrium (Li et al., ICCV 2019): each layer gets the mean of the gradients of the exits behind it."""

from __future__ import annotations

from torch import Tensor

from exitwise.kernels.gradients import scaled
from exitwise.methods.flow.base import GradientFlow
from exitwise.models.staged import Cut


class Equilibrium(GradientFlow):
    """What reaches the trunk at exit k of K (k from 0) is (its head's gradient + (K - k - 1) times that from deeper
    exits) / (K - k), so that it does not grow with the number of exits."""

    def to_head(self, x: Tensor, cut: Cut) -> Tensor:
        return scaled(x, 1 / (cut.exits - cut.exit))

    def onward(self, x: Tensor, cut: Cut) -> Tensor:
        left = cut.exits - cut.exit
        return scaled(x, (left - 1) / left)
