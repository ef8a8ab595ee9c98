"""Heads that are handed the answer of the head before: what a network predicts changes, and its states carry logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from exitwise.models.heads import start_small
from exitwise.models.staged import Stage, StagedModel, State, as_it_is


class Boosting(nn.Module):
    """F_k = o_k + T sg(F_{k-1}): each head learns what those before it leave (Yu et al., BoostNet, AAAI 2023).

    Args:
        classes: their number; not needed.
        boost: T.
    """

    def __init__(self, classes: int, boost: float = 0.5) -> None:
        super().__init__()
        self.boost = boost

    def forward(self, logits: Tensor, before: Tensor) -> Tensor:
        return logits + self.boost * before.detach()


class Collaboration(nn.Module):
    """A head sees its feature beside ReLU(BatchNorm(linear(logits before))) (Li et al., IMTA, ICCV 2019).

    A linear layer on both side by side is the sum of one on each: this adds the second to the head's logits. It starts
    near zero.

    Args:
        classes: C, the width of all its layers.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Linear(classes, classes), nn.BatchNorm1d(classes), nn.ReLU())
        self.linear = _small(classes)

    def forward(self, logits: Tensor, before: Tensor) -> Tensor:
        return logits + self.linear(self.seen(before))


class Cascaded(nn.Module):
    """The same with LayerNorm(sg(logits before)) (Wolczyk et al., Zero Time Waste, NeurIPS 2021).

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(classes)
        self.linear = _small(classes)

    def forward(self, logits: Tensor, before: Tensor) -> Tensor:
        return logits + self.linear(self.norm(before.detach()))


def _small(classes: int) -> nn.Linear:
    linear = nn.Linear(classes, classes)
    for param in linear.parameters():
        start_small(param)
    return linear


class LinkedStage(Stage):
    """A stage whose state is that of another stage and the logits of its head.

    Args:
        stage: the other one.
        link: from the logits of its head and those handed on to what it answers; None: the first stage.
    """

    def __init__(self, stage: Stage, link: nn.Module | None) -> None:
        super().__init__(_Linked(stage.body, stage.head, link), _Answer(), stage.channels)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        body = cast("_Linked", self.body)
        yield from body.head.parameters()
        if body.link is not None:
            yield from body.link.parameters()

    def forward(
        self,
        state: State,
        seen: Callable[[State], State] = as_it_is,
        onward: Callable[[State], State] = as_it_is,
    ) -> tuple[State, Tensor]:
        state = cast("_Linked", self.body).advance(state, seen, onward)
        return state, state[1]


class _Linked(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module, link: nn.Module | None) -> None:
        super().__init__()
        self.body, self.head, self.link = body, head, link

    def advance(
        self, state: State, seen: Callable[[State], State], onward: Callable[[State], State]
    ) -> tuple[State, Tensor]:
        state, before = (state, None) if self.link is None else state
        state = self.body(state)
        logits: Tensor = self.head(seen(state))
        if self.link is not None:
            logits = self.link(logits, before)
        return onward(state), logits

    def forward(self, state: State) -> tuple[State, Tensor]:
        return self.advance(state, as_it_is, as_it_is)


class _Answer(nn.Module):
    def forward(self, state: tuple[State, Tensor]) -> Tensor:
        return state[1]


def link_heads(model: StagedModel, make: Callable[[], nn.Module]) -> None:
    """Let each head but the first answer with the help of the one before, in place; ``make`` makes what links them."""
    stages: Iterable[Stage] = cast("list[Stage]", list(model.stages))
    like = next(model.parameters())
    linked = [LinkedStage(stage, make().to(like) if k else None) for k, stage in enumerate(stages)]
    own = {id(module) for module in model.modules()}
    model.stages = nn.ModuleList(linked)
    for module in model.modules():
        if id(module) not in own:
            module.training = model.training
