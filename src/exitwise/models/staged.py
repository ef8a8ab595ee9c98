"""The contract that everything else relies on: a network as an ordered list of stages with one exit each.

It knows neither how stages compute nor who decides where a sample leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs, example_of
from exitwise.models.cost import count_cost
from exitwise.models.fingerprint import fingerprint
from exitwise.shapes import Float

State = Any
"""What flows from stage to stage: a tensor, or a list, tuple or dict of tensors, batch first."""


def as_it_is(state: State) -> State:
    """Return a state as it is."""
    return state


class Stage(nn.Module):
    """One stage: ``body`` advances the running state, ``head`` classifies it.

    Args:
        body: maps the state to the next state.
        head: maps that next state to logits.
        channels: the dimension of that state's tensors that has their channels.
    """

    def __init__(self, body: nn.Module, head: nn.Module, channels: int = 1) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.channels = channels

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the exit."""
        return self.head.parameters()

    def forward(
        self,
        state: State,
        seen: Callable[[State], State] = as_it_is,
        onward: Callable[[State], State] = as_it_is,
    ) -> tuple[State, Float[Tensor, "batch classes"]]:
        """Return the next state and this exit's logits; the head sees it by ``seen``, the next stage by ``onward``."""
        state = self.body(state)
        logits = self.head(seen(state))
        return onward(state), logits


class Cut(NamedTuple):
    """A place between two stages, behind one exit.

    Attributes:
        exit: which, from 0.
        exits: how many the network has.
        channels: the dimension of channels in the state's tensors.
    """

    exit: int
    exits: int
    channels: int


class Flow(Protocol):
    """What happens to gradients at a cut while a network trains; both methods return the values that they get."""

    progress: float

    def to_head(self, x: Tensor, cut: Cut) -> Tensor:
        """Return a tensor of the state as the head sees it."""

    def onward(self, x: Tensor, cut: Cut) -> Tensor:
        """Return it as the next stage sees it."""


def check_staged(network: object) -> None:
    """Raise UserError unless this is a network with exits."""
    if not isinstance(network, StagedModel):
        raise UserError(f"expected a network with exits, such as add_exits makes; got a {type(network).__name__}")


class StagedModel(nn.Module):
    """An early-exit network: stages, each handing on a state and giving this exit's logits.

    The first stage's state is the batch: a tensor, or a dict of tensors.

    Args:
        stages: in order, cheap exit first.
        num_classes: number of classes.
        input_shape: of one image, (channels, height, width), or of another single input.
        example: in place of that: example inputs, batch first; a tensor, or a mapping of tensors by name.

    Attributes:
        flow: how gradients flow between the stages in train mode; None: as they are.
        fitted_on: fingerprints of the samples that its exits were fitted on, where a loader gave them.
        example: inputs that the network is meant for; their device and the type of their floats say nothing.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        num_classes: int,
        input_shape: tuple[int, ...] | None = None,
        *,
        example: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.num_classes = num_classes
        self.example = example_of(example, input_shape)
        self.frozen = False
        self.flow: Flow | None = None
        self.fitted_on: set[int] = set()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch; of a network that takes a single tensor.

        Raises:
            UserError: for one whose inputs have names.
        """
        if not isinstance(self.example, Tensor):
            raise UserError(f"expected a network that takes one tensor; this one takes {', '.join(self.example)}")
        return tuple(self.example.shape[1:])

    @property
    def exits(self) -> int:
        """Number of exits."""
        return len(self.stages)

    @property
    def exit_macs(self) -> tuple[int, ...]:
        """Multiply-accumulates per sample, such as the example's first, to each exit, counted now on a pass."""
        return count_cost(self).macs

    @property
    def full_macs(self) -> int:
        """What shares of cost are shares of: the last exit's multiply-accumulates per sample."""
        return self.exit_macs[-1]

    @property
    def fingerprint(self) -> str:
        """Which weights it has, in 64 characters, read now: the same on any device and in any process."""
        return fingerprint(self.state_dict())

    def freeze_bodies(self) -> None:
        """Leave only the exits to be trained: the rest keeps its parameters and statistics, and stays in eval mode."""
        self.frozen = True
        for stage in cast("list[Stage]", list(self.stages)):
            stage.body.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            for stage in cast("list[Stage]", list(self.stages)):
                stage.body.eval()
        return self

    def forward(self, inputs: Inputs) -> list[Float[Tensor, "batch classes"]]:
        """Return the logits of all exits, cheap to dear."""
        return [logits for _, logits in self.run_stages(inputs)]

    def forward_last(self, inputs: Inputs) -> Float[Tensor, "batch classes"]:
        """Return the logits of the last exit alone: the network as if it had no early exits."""
        return self.forward_only(inputs, self.exits - 1)

    def forward_only(self, inputs: Inputs, exit: int) -> Float[Tensor, "batch classes"]:
        """Return the logits of one exit (0-based) alone: a smaller network without early exits."""
        state: State = inputs
        stages = cast("list[Stage]", list(self.stages))[: exit + 1]
        for stage in stages:
            state = stage.body(state)
        logits: Tensor = stages[-1].head(state)
        return logits

    def run_stages(self, inputs: Inputs) -> Iterator[tuple[State, Float[Tensor, "batch classes"]]]:
        """Yield the state and the logits after each stage, computed as they are asked for."""
        state: State = inputs
        flow = self.flow if self.training else None
        for k, stage in enumerate(cast("list[Stage]", list(self.stages))):
            if flow is None:
                state, logits = stage(state)
            else:
                cut = Cut(k, self.exits, stage.channels)
                seen, onward = (
                    partial(tree_map_only, Tensor, partial(each, cut=cut)) for each in (flow.to_head, flow.onward)
                )
                state, logits = stage(state, seen, onward)
            yield state, logits
