"""Feature partition (Gong et al., Deep Feature Surgery, ECCV 2024): exits share a part of the channels alone."""

from __future__ import annotations

from torch import Tensor

from exitwise.catalogue.flows import PartitionOptions
from exitwise.kernels.gradients import in_part
from exitwise.methods.flow.base import GradientFlow
from exitwise.models.staged import Cut


class Partition(GradientFlow):
    """The head sees all channels; what deeper exits learn reaches the first ``shared_channels`` of them alone.

    Args:
        shared_channels: share of the channels of each tensor that goes deeper (the authors' beta).
    """

    options = PartitionOptions

    def __init__(self, shared_channels: float = PartitionOptions.shared_channels) -> None:
        self.shared_channels = shared_channels

    def onward(self, x: Tensor, cut: Cut) -> Tensor:
        return in_part(x, self.shared_channels, cut.channels) if x.dim() > 1 else x
