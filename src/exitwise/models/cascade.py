"""Trained networks one after the other as one network of stages, whose state is the input.

Knows nothing of files, runs and preprocessing but the numbers that inputs are normalised by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs, batch_of
from exitwise.kernels.modes import evaluating
from exitwise.models.backbones.attach import count_classes
from exitwise.models.backbones.backbone import answer, check_whole_numbers, unchanged, unwrapped
from exitwise.models.cost import count_alone
from exitwise.models.staged import Stage, StagedModel, State


class View(NamedTuple):
    """How one network of a cascade sees the input.

    Attributes:
        size: height and width that images are resized to; None: as they come.
        mean, std: per channel, of the normalisation that the network was trained with; None: as the input's.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Seen(nn.Module):
    """From the cascade's input to what a network sees of it."""

    def __init__(self, view: View, first: View, example: Inputs, like: Tensor) -> None:
        super().__init__()
        as_is = view.size is None or tuple(example.shape[2:]) == tuple(view.size)
        self.size = None if as_is else view.size
        self.anew = view.mean is not None and (view.mean, view.std) != (first.mean, first.std)
        if self.anew:
            mean, std, mean_0, std_0 = (like.new_tensor(each) for each in (*view[1:], *first[1:]))
            self.register_buffer("scale", (std_0 / std)[:, None, None], persistent=False)
            self.register_buffer("shift", ((mean_0 - mean) / std)[:, None, None], persistent=False)

    def forward(self, inputs: Inputs) -> Inputs:
        if self.size is not None:
            inputs = F.interpolate(inputs, self.size, mode="bilinear", align_corners=False, antialias=True)
        return inputs * self.scale + self.shift if self.anew else inputs


def _input_of(state: State) -> Inputs:
    """Return the cascade's input from a state: it, or it and what one network hands on within itself."""
    return state[0] if isinstance(state, tuple) else state


class _Keep(nn.Module):
    """The body of a stage that is a whole network: the input goes on as it is."""

    def forward(self, state: State) -> Inputs:
        return _input_of(state)


class _Whole(nn.Module):
    """The head of such a stage: the network, by its last exit."""

    def __init__(self, seen: Seen | None, network: nn.Module) -> None:
        super().__init__()
        self.seen, self.network = seen, network

    def forward(self, inputs: Inputs) -> Tensor:
        if self.seen is not None:
            inputs = self.seen(inputs)
        if isinstance(self.network, StagedModel):
            return self.network.forward_last(inputs)
        logits: Tensor = answer(self.network, inputs)
        return logits


class _Within(nn.Module):
    """The body of a stage of a network with exits, beside the cascade's input; the first one sees that."""

    def __init__(self, body: nn.Module, seen: Seen | None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.seen, self.head = body, seen, head

    def forward(self, state: State) -> State:
        inputs = _input_of(state)
        state = self.body(state[1] if self.seen is None else self.seen(inputs))
        return inputs, state if self.head is None else self.head(state)


class _Beside(nn.Module):
    """The head of such a stage; of the network's last stage there is none left to do, for its body hands on nothing but
    logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: State) -> Tensor:
        logits: Tensor = self.head(state[1])
        return logits


class Cascade(StagedModel):
    """Networks one after the other: what the first is sure of, the next never sees.

    Weights of a network that stands in it several times are stored once, under ``networks``.

    Args:
        networks: trained classifiers, cheap to dear, of the same classes: modules that return logits, or networks with
            exits. The same one may stand several times, with other views.
        views: how each of them sees the input; the first one's normalisation is the input's.
        example: inputs of the cascade, batch first.
        all_exits: whether each exit of a network with exits is one of the cascade; else its last exit alone.

    Attributes:
        views: as given.
        starts: at which stage each network begins.

    Raises:
        UserError: for fewer than two networks, for networks of other classes than the first or on another device, that
            do not take what they see, or of which an earlier one costs more than a later one.
    """

    def __init__(
        self, networks: Sequence[nn.Module], views: Sequence[View], example: Inputs, *, all_exits: bool = False
    ) -> None:
        networks = [unwrapped(network) for network in networks]
        if len(networks) < 2:
            raise UserError(f"expected two or more networks, or one at several sizes; got {len(networks)}")
        for number, (one, other) in enumerate(pairwise(zip(networks, views, strict=True)), start=1):
            if one[0] is other[0] and one[1] == other[1]:
                raise UserError(
                    f"expected another network, or another size of image, after each; network {number + 1} is network "
                    f"{number} again, as it sees it"
                )
        likes = [_parameter(network) for network in networks]
        if {(like.device, like.dtype) for like in likes} != {(likes[0].device, likes[0].dtype)}:
            kinds = ", ".join(dict.fromkeys(f"{like.dtype} on {like.device}" for like in likes))
            raise UserError(f"expected networks of one type on one device; got {kinds}")
        seen = [Seen(view, views[0], example, like) for view, like in zip(views, likes, strict=True)]
        classes = _classes_of(networks, seen, example)
        stages: list[Stage] = []
        starts = []
        for network, each in zip(networks, seen, strict=True):
            starts.append(len(stages))
            exited = isinstance(network, StagedModel) and network.exits > 1 and all_exits
            stages += (
                _exits_of(cast("StagedModel", network), each) if exited else [Stage(_Keep(), _Whole(each, network))]
            )
        super().__init__(stages, classes, example=example)
        self.networks = nn.ModuleList({id(network): network for network in networks}.values())
        self.views, self.starts = tuple(views), tuple(starts)
        theirs = {id(module) for module in self.networks.modules()}
        for module in self.modules():
            if id(module) not in theirs:
                module.training = networks[0].training
        for network in networks:
            self.fitted_on |= getattr(network, "fitted_on", set())
        self._check_order()

    @property
    def full_macs(self) -> int:
        """Multiply-accumulates of the last network alone: the last exit's cost has the earlier networks' in it."""
        return count_alone(self, self.exits - 1)

    def forward_only(self, inputs: Inputs, exit: int) -> Tensor:
        """Return the logits of one exit (0-based) of its network alone, without the networks before it."""
        state: State = inputs
        stages = cast("list[Stage]", list(self.stages))[max(start for start in self.starts if start <= exit) : exit + 1]
        for stage in stages:
            state = stage.body(state)
        logits: Tensor = stages[-1].head(state)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, the weights once, by ``networks.NUMBER.NAME``."""
        state = super().state_dict(*args, **kwargs)
        again = f"{kwargs.get('prefix', '')}stages."
        for name in [name for name in state if name.startswith(again)]:
            del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module, from what :meth:`state_dict` gave."""
        return self.networks.load_state_dict(
            {name.removeprefix("networks."): value for name, value in state_dict.items()}, *args, **kwargs
        )

    def _check_order(self) -> None:
        """Raise UserError unless each network costs at least as much as the one before."""
        ends = [*(start - 1 for start in self.starts[1:]), self.exits - 1]
        costs = [count_alone(self, end) for end in ends]
        for number, (one, other) in enumerate(pairwise(costs), start=1):
            if one > other:
                raise UserError(
                    f"expected networks from cheap to dear; network {number} costs {one / 1e6:.4g}M MACs, network "
                    f"{number + 1} {other / 1e6:.4g}M"
                )


def _exits_of(network: StagedModel, seen: Seen) -> list[Stage]:
    """Return the stages of a network with exits as those of a cascade."""
    stages = cast("list[Stage]", list(network.stages))
    *early, last = [(stage, seen if k == 0 else None) for k, stage in enumerate(stages)]
    found = [Stage(_Within(stage.body, first), _Beside(stage.head)) for stage, first in early]
    return [*found, Stage(_Within(last[0].body, last[1], last[0].head), _Beside(nn.Identity()))]


def _parameter(network: nn.Module) -> Tensor:
    """Return a parameter of a network whose products can be counted."""
    check_whole_numbers(network)
    first = next(network.parameters(), None)
    if first is None:
        raise UserError(f"expected networks with parameters; {type(network).__name__} has none")
    return first


def _classes_of(networks: Sequence[nn.Module], seen: Sequence[Seen], example: Inputs) -> int:
    """Return the number of classes of all networks, each run on what it sees of the example."""
    found: list[int] = []
    for number, (network, each) in enumerate(zip(networks, seen, strict=True), start=1):
        kind, whole = type(network).__name__, _Whole(None, network)
        with evaluating(network), unchanged(network):
            inputs = each(batch_of(example, 2, next(network.parameters())))
            found.append(count_classes(whole, inputs, None, kind))
        if found[-1] != found[0]:
            raise UserError(
                f"expected networks of the same classes; network 1 has {found[0]}, network {number} {found[-1]}"
            )
    return found[0]
