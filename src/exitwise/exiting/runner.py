"""Runs a staged network stage by stage and drops the samples that leave, so that easy inputs really cost less."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from exitwise.exiting.measures import State, rows
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Thresholds
from exitwise.kernels.inputs import Inputs, described, device_of, has_tokens, mismatch, moved, ranges, taken
from exitwise.kernels.modes import evaluating
from exitwise.shapes import Bool, Float, Float64, Int


@runtime_checkable
class Staged(Protocol):
    """A network to run: a module with stages in order, whatever its class.

    A stage has a ``body``, from the running state (a tensor, or a list, tuple or dict of them, batch first; the inputs
    at first) to the next, and a ``head``, from that to logits (batch, classes).

    Attributes:
        stages: in order, cheap exit first.
        example: inputs that it is meant for: a tensor, or a dict of tensors by name, batch first.
        training: whether it is in training mode.
    """

    training: bool

    @property
    def stages(self) -> Iterable[Any]: ...

    @property
    def example(self) -> Inputs: ...

    def parameters(self) -> Iterator[Any]: ...


@runtime_checkable
class Watch(Protocol):
    """A watcher that is told of every call, such as a :class:`~exitwise.deploy.monitor.Monitor`."""

    def check(self, exits: int) -> None: ...

    def add(
        self, exit: Any, confidence: Any, macs: Any, seconds: float, thresholds: Thresholds | None = None
    ) -> None: ...


class ExitResult(NamedTuple):
    """The fate of a batch, one entry per sample in the order given.

    Attributes:
        prediction: class index, int64.
        exit: exit taken, 0-based, int64.
        confidence: at that exit, as the policy reads it.
        macs: multiply-accumulates spent.
        answered: whether it is confident enough for the policy to answer, bool; the prediction is a guess where not.
    """

    prediction: Int[Tensor, "batch"]
    exit: Int[Tensor, "batch"]
    confidence: Float[Tensor, "batch"]
    macs: Float64[Tensor, "batch"]
    answered: Bool[Tensor, "batch"]


class EarlyExitRunner:
    """Early-exit inference: call it with a batch of inputs: a tensor, or a mapping of tensors by name.

    Args:
        model: the network; it is run in eval mode and otherwise left as it is. One that is in eval mode itself is not
            asked for the modes of its parts.
        policy: when a sample leaves.
        exit_macs: cost of leaving at each exit; the network's ``exit_macs`` if not given.
        compile: torch.compile each stage, for any batch size; the first calls take minutes.
        monitor: told of every call.

    Attributes:
        policy: may be exchanged while it runs, as a budget dial; a call keeps the one it began with.

    Raises:
        ValueError: if the policy, the monitor or the costs are for another number of exits, there are no costs, or
            what it is called with is no batch of inputs such as the network's example, or has tokens beyond the
            network's tables.
    """

    def __init__(
        self,
        model: Staged,
        policy: ExitPolicy,
        exit_macs: tuple[int, ...] | None = None,
        *,
        compile: bool = False,
        monitor: Watch | None = None,
    ) -> None:
        stages = list(model.stages)
        self.model = model
        self.exits = len(stages)
        self.policy = policy
        if monitor is not None:
            monitor.check(policy.exits)
        self.monitor = monitor
        self.exit_macs: tuple[int, ...] = exit_macs or tuple(getattr(model, "exit_macs", ()))
        if len(self.exit_macs) != self.exits:
            raise ValueError(f"expected exit_macs of {self.exits} exits; got {len(self.exit_macs)}")
        self._parts: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
            (compiled(stage.body), compiled(stage.head)) if compile else (stage.body, stage.head) for stage in stages
        ]

    @property
    def policy(self) -> ExitPolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        if policy.exits != self.exits:
            raise ValueError(f"expected a policy for {self.exits} exits; got one for {policy.exits}")
        self._policy = policy

    def __call__(self, inputs: Inputs) -> ExitResult:
        """Classify samples, each as deep as it needs."""
        inputs = self._checked(inputs)
        start = time.perf_counter()
        policy = self.policy
        try:
            if torch.is_inference_mode_enabled() and not self.model.training:  # entering costs a single image time
                result = self._run(inputs, policy)
            else:
                with torch.inference_mode(), evaluating(cast("nn.Module", self.model)):
                    result = self._run(inputs, policy)
        except IndexError as error:
            if not has_tokens(inputs):
                raise
            raise ValueError(f"expected ids and as many tokens as the network knows; got {ranges(inputs)}") from error
        if self.monitor is not None:
            exit, confidence, macs = (part.cpu().numpy() for part in result[1:4])
            self.monitor.add(exit, confidence, macs, time.perf_counter() - start, policy.thresholds)
        return result

    def _checked(self, inputs: Inputs) -> Inputs:
        wrong = mismatch(inputs, self.model.example)
        if wrong:
            raise ValueError(f"expected inputs {wrong[0]}, at least one; got {wrong[1]}")
        if isinstance(inputs, Tensor):
            return inputs
        return {name: inputs[name] for name in self.model.example}

    def stream(self, batches: Iterable[Any]) -> Iterator[ExitResult]:
        """Classify what a data loader gives, on any device: inputs, tuples that begin with them, or mappings."""
        device = next(self.model.parameters()).device
        for batch in batches:
            found = taken(batch, self.model.example)
            if found is None:
                raise ValueError(f"expected batches of inputs, or that begin with them; got {described(batch)}")
            yield self(moved(found[0], device))

    def _run(self, inputs: Inputs, policy: ExitPolicy) -> ExitResult:
        left: list[_Left] = []
        inside: Tensor | None = None
        measure = policy.measure
        carried: State = None
        state: Any = inputs
        for k, (body, head) in enumerate(self._parts):
            state = body(state)
            can_leave = policy.can_leave(k)
            if not (can_leave or measure.needs_every_exit):
                continue
            confident, label, carried, _ = measure.read(head(state), k, carried)
            if not can_leave:
                continue
            if len(label) == 1:
                count = int(policy.leaves_alone(confident, k))
            elif k == policy.exits - 1:
                count = len(label)
            else:
                leaves = policy.leaves(confident, k)
                count = int(leaves.sum())  # the one wait for the device at an exit
            if count == len(label):
                left.append(_Left(k, inside, label, confident))
                break
            if count:
                order = leaves.int().argsort(descending=True, stable=True)
                go, stay = order[:count], order[count:]
                left.append(_Left(k, go if inside is None else inside[go], label[go], confident[go]))
                inside, state = stay if inside is None else inside[stay], select(state, stay)
                carried = rows(carried, stay)
        return self._in_order(left, policy, device_of(inputs))

    def _in_order(self, left: list[_Left], policy: ExitPolicy, device: torch.device) -> ExitResult:
        """Return the result in the order of the batch, of which ``left`` are parts, all together the whole."""
        sizes = [len(part.prediction) for part in left]
        if len(left) == 1:
            (part,) = left
            exit = torch.full(sizes, part.exit, device=device)
            cost = torch.full(sizes, self.exit_macs[part.exit], dtype=torch.float64, device=device)
            return ExitResult(part.prediction, exit, part.confidence, cost, policy.answered(part.confidence))
        exits = torch.tensor([part.exit for part in left], device=device)
        macs = torch.tensor([self.exit_macs[part.exit] for part in left], dtype=torch.float64, device=device)
        order = torch.cat([part.samples for part in left if part.samples is not None]).argsort()
        repeats = torch.tensor(sizes, device=device)
        confidence = torch.cat([part.confidence for part in left])[order]
        return ExitResult(
            torch.cat([part.prediction for part in left])[order],
            exits.repeat_interleave(repeats, output_size=sum(sizes))[order],
            confidence,
            macs.repeat_interleave(repeats, output_size=sum(sizes))[order],
            policy.answered(confidence),
        )


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what torch.compile makes of a function, for any batch size."""

    def call(state: Any) -> Any:
        return function(state)

    # The compiler limits the forms of each code object, of which all stages would share one.
    call.__code__ = call.__code__.replace()
    return torch.compile(call, dynamic=True)


class _Left(NamedTuple):
    """Samples that left at one exit (0-based): their positions in the batch (None: all of it) and answers."""

    exit: int
    samples: Tensor | None
    prediction: Tensor
    confidence: Tensor


def select(state: Any, index: Int[Tensor, "chosen"]) -> Any:
    """Return the running state of some samples only: every tensor in it indexed along its first dimension."""
    return tree_map(lambda tensor: tensor.index_select(0, index), state)
