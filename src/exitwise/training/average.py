"""A running average of a network's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP_POWER = 2 / 3
"""How fast the average begins to look back, as timm's ModelEmaV3 does by default."""


class WeightAverage:
    """An exponential moving average of a network's parameters and BatchNorm statistics.

    At update t it keeps ``min(decay, 1 - (1 + t) ** (-2 / 3))`` of itself: the first weights are soon forgotten.

    Args:
        network: the one to follow.
        decay: most of the average that an update keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.updates = 0
        self.tensors = {name: value.detach().clone() for name, value in self._followed().items()}

    def _followed(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.network.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        kept = min(self.decay, 1 - (1 + self.updates) ** -WARMUP_POWER)
        get_ema_multi_avg_fn(kept)(list(self.tensors.values()), list(self._followed().values()), self.updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the average, within."""
        own = {name: value.clone() for name, value in self._followed().items()}
        self._give(self.tensors)
        try:
            yield
        finally:
            self._give(own)

    @torch.no_grad()
    def _give(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self._followed().items():
            value.copy_(tensors[name])

    def adopt(self) -> None:
        """Let the network have the average for good."""
        self._give(self.tensors)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        tensors: dict[str, Tensor] = state["tensors"]  # type: ignore[assignment]
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
