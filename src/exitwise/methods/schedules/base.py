"""What trains when, around a method that says what samples count."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.options import Options
from exitwise.methods.base import Method, Weighting
from exitwise.weighting.passes import Batch, TrainPass


class Schedule(Method):
    """All exits train all along. A part overrides what it does otherwise.

    Args:
        then: the method that says what samples count.

    Attributes:
        options: the dataclass of the schedule's own options.
    """

    options: ClassVar[type[Options]] = Options

    def __init__(self, then: Method) -> None:
        self.then = then
        self.optimizer = then.optimizer

    @classmethod
    def around(cls, then: Method, options: Any, batches_per_epoch: int) -> Method:
        """Return the method in this schedule, from an instance of :attr:`options`."""
        return then

    def check(self, exits: int) -> None:
        self.then.check(exits)

    def begin(self, index: int, progress: float) -> None:
        super().begin(index, progress)
        self.then.begin(index, progress)

    def takes_tangents(self, index: int) -> bool:
        return self.then.takes_tangents(index)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        return self.then.weigh(model, optimizer, forward, meta, index)

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        self.then.stepped(model, taken)

    def to(self, device: torch.device) -> Self:
        self.then.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"then": self.then.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.then.load_state_dict(state["then"])
