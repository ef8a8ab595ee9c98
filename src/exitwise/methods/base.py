"""What a training method is: the rule that weights each sample's loss at each exit.

The trainer knows this protocol and no method by name.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.weighting.gradient import Batch, TrainPass


class Weighting(NamedTuple):
    """What a method says about one half batch.

    Attributes:
        weights: sample weights (B, K), detached.
        meta_loss: detached scalar, or None where no meta pass was made.
        finite: whether the meta-gradient was, a bool scalar; None where none was taken.
    """

    weights: Tensor
    meta_loss: Tensor | None = None
    finite: Tensor | None = None


class Method(Protocol):
    """A training method. The loop it lives in, which the trainer runs::

        for epoch in range(epochs):
            for index, (inputs, targets) in enumerate(loader):
                # both optimizers follow the schedule
                for train, meta in half_batches(inputs, targets):      # (a, b), then (b, a)
                    run = train_pass(model, *train, keep=method.takes_tangents(index))   # forward, with graph
                    weighting = method.weigh(model, optimizer, run, meta, index)   # <- the method
                    optimizer.zero_grad()
                    weighted_loss(run.losses, weighting.weights).backward()
                    taken = ...                                        # whether all of that is finite
                    step_if(taken, optimizer)
                    method.stepped(model, taken)                       # <- the method

    Whatever the method, the network gets the same data in the same order and the same number of updates.
    """

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of what the method itself learns, scheduled like the network's; None if nothing."""
        ...

    def takes_tangents(self, index: int) -> bool:
        """Whether the train half of this loaded batch will be passed through in forward mode."""
        ...

    def weigh(self, model: nn.Module, optimizer: Optimizer, run: TrainPass, meta: Batch, index: int) -> Weighting:
        """Weights for the train half ``run``.

        May learn from the meta half, but must leave the network, its buffers and ``optimizer`` as they are.
        ``index`` counts loaded batches within the epoch, from 0.
        """
        ...

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        """The optimizer has just stepped with the weights given; the network still has its gradients.

        ``taken``, a bool scalar on the device, is False where the step was skipped because something was not finite.
        """
        ...

    def to(self, device: torch.device) -> Method:
        """Move what the method holds to a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything to resume from, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`."""
        ...
