"""Early heads that do not steer the trunk: it learns from the last exit alone, for a share of the training."""

from __future__ import annotations

from torch import Tensor

from exitwise.catalogue.flows import DetachedOptions
from exitwise.kernels.gradients import scaled
from exitwise.methods.flow.base import GradientFlow
from exitwise.models.staged import Cut


class Detached(GradientFlow):
    """Gradients of early heads stop at what they see.

    Args:
        detached_share: share of the training, from its start; afterwards gradients flow as they are.
    """

    options = DetachedOptions

    def __init__(self, detached_share: float = DetachedOptions.detached_share) -> None:
        self.detached_share = detached_share

    def to_head(self, x: Tensor, cut: Cut) -> Tensor:
        steers = cut.exit == cut.exits - 1 or self.progress >= self.detached_share
        return x if steers else scaled(x, 0)
