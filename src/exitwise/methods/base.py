"""What a training method is: the rule that weights each sample's loss at each exit.

The trainer knows this class and no method by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.catalogue.options import Options
from exitwise.weighting.passes import Batch, TrainPass


class Weighting(NamedTuple):
    """The word of a method about one half batch.

    Attributes:
        weights: sample weights (B, K), detached.
        meta_loss: detached scalar, or None where no meta pass was made.
        finite: whether the meta-gradient was, a bool scalar; None where none was taken.
    """

    weights: Tensor
    meta_loss: Tensor | None = None
    finite: Tensor | None = None


class Method:
    """A training method. The loop it lives in, which the trainer runs::

        for epoch in range(epochs):
            for index, (inputs, targets) in enumerate(loader):
                # both optimizers follow the schedule
                method.begin(index, progress)                          # <- the method
                for train, meta in half_batches(inputs, targets):      # (a, b), then (b, a)
                    forward = train_pass(model, *train, keep=method.takes_tangents(index))   # forward, with graph
                    weighting = method.weigh(model, optimizer, forward, meta, index)   # <- the method
                    optimizer.zero_grad()
                    weighted_loss(forward.losses, weighting.weights).backward()
                    taken = ...                                        # whether all of that is finite
                    step_if(taken, optimizer)
                    method.stepped(model, taken)                       # <- the method

    Whatever the method, the network gets the same data in the same order and the same number of updates.

    A method overrides :meth:`weigh`; the rest is for one that has a state or learns. One without either is a function:
    :meth:`from_function`.

    Attributes:
        options: the dataclass of its options, which says what it can do as well.
        optimizer: of what the method itself learns, scheduled like the network's; None if nothing.
        progress: share of the training that is done, in [0, 1).
    """

    options: ClassVar[type[Options]] = Options
    optimizer: Optimizer | None = None
    progress: float = 0.0

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a method from plain values: the arguments of its class, or what it takes in their place."""
        return cls(*args, **kwargs)

    @classmethod
    def from_options(cls, options: Any, exits: int, *, fused: bool = False) -> Self:
        """Return a method from an instance of :attr:`options`, for a network with that many exits.

        With ``fused``, its optimizer skips a step without waiting for the GPU.
        """
        return cls.create(**vars(options))

    @staticmethod
    def from_function(weigh: Callable[[TrainPass], Tensor]) -> Method:
        """Return a method without options and state: ``weigh`` makes weights (B, K) of the pass over a train half."""
        return _Function(weigh)

    def check(self, exits: int) -> None:
        """Raise UserError unless this is for networks with so many exits."""

    def begin(self, index: int, progress: float) -> None:
        """A loaded batch comes, the ``index``-th of the epoch, from 0; ``progress`` of the training is done."""
        self.progress = progress

    def takes_tangents(self, index: int) -> bool:
        """Return whether the train half of this loaded batch will be passed through in forward mode."""
        return False

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        """Return weights for the train half ``forward``.

        May learn from the meta half, but must leave the network, its buffers and ``optimizer`` as they are.
        ``index`` counts loaded batches within the epoch, from 0.
        """
        raise NotImplementedError

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        """The optimizer has just stepped with the weights given; the network still has its gradients.

        ``taken``, a bool scalar on the device, is False where the step was skipped because something was not finite.
        """

    def to(self, device: torch.device) -> Self:
        """Move what the method holds to a device."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return everything to resume from, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`."""


class _Function(Method):
    def __init__(self, weights: Callable[[TrainPass], Tensor]) -> None:
        self.weights = weights
        self.__doc__ = weights.__doc__

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        return Weighting(self.weights(forward).detach())
