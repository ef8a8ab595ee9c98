"""Several processes that train one network, as ``torchrun`` starts them: how they meet, and what they tell one another.

The network, its optimizer and the method are the same in each process at all times: gradients are averaged before
anyone uses them. Knows tensors and torch.distributed, and nothing of networks or methods.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from exitwise.errors import PeerError, UserError
from exitwise.processes.ranks import ALONE, Ranks

BUCKET_BYTES = 4 << 20
"""So much of the gradients is sent at once."""

WINDING_UP = 15.0
"""Seconds that a job takes at most to end once a process has given up another; half of a timeout below their double."""


@dataclass(eq=False)
class Clock:
    """Seconds and calls spent in communication, waiting for others included."""

    seconds: float = 0.0
    calls: int = 0


@dataclass(frozen=True, eq=False)
class Processes(Ranks):
    """The processes of the default process group; see :class:`~exitwise.processes.ranks.Ranks`.

    Attributes:
        clock: what communication has cost so far.
        neighbours: process ids of those on the same machine.
    """

    rank: int
    size: int
    together: bool = False
    dealt: bool = True
    clock: Clock = field(default_factory=Clock)
    neighbours: tuple[int, ...] = ()

    def repeated(self) -> Processes:
        return replace(self, dealt=False)

    def share(self, tensor: Tensor) -> Tensor | float:
        count = tensor.new_tensor(float(len(tensor)))
        return count / self.sum_all([count])[0]

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self._call(dist.all_reduce, flat)
        return _unflatten(flat, tensors)

    @contextmanager
    def adding(self, params: Iterable[Tensor]) -> Iterator[None]:
        buckets = _Buckets(self)
        hooks = [param.register_post_accumulate_grad_hook(buckets.add) for param in params if param.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        buckets.finish()

    def sum_through(self, tensor: Tensor) -> Tensor:
        return _Sum.apply(tensor, self)

    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(tensor)
        self._call(dist.all_reduce, counts)
        sizes = counts.tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        self._call(dist.all_gather, parts, padded)
        rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        rows[self.rank] = tensor
        start = sum(sizes[: self.rank])
        return torch.cat(rows), slice(start, start + len(tensor))

    def all_true(self, ok: Tensor) -> Tensor:
        flag = ok.to(torch.int32)
        self._call(dist.all_reduce, flag, dist.ReduceOp.MIN)
        return flag.bool()

    def max_over(self, number: int) -> int:
        largest = torch.tensor(number)
        self._call(dist.all_reduce, largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._call(dist.broadcast, tensor.data, 0)

    def barrier(self) -> None:
        self._call(dist.all_reduce, torch.zeros(1))

    def _call(self, collective: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        try:
            result = collective(*args)
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            self._wake()
            reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            raise PeerError(f"another process of this job has failed or does not answer ({reason})") from error
        self.clock.seconds += time.perf_counter() - start
        self.clock.calls += 1
        return result

    def _wake(self) -> None:
        """Let neighbours that are stopped go on, so that the launcher's signal can end them."""
        for process in self.neighbours:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@contextmanager
def joined(device: torch.device, timeout: float, together: bool = False) -> Iterator[Ranks]:
    """Within this context, the processes that ``torchrun`` has started are one job; without it, one process is alone.

    Args:
        device: where this process trains: gloo connects processes on a CPU, NCCL those with a GPU each.
        timeout: seconds within which the job ends when a process does not answer; the others give it up ``WINDING_UP``
            seconds earlier.
        together: see :class:`~exitwise.processes.ranks.Ranks`.

    Raises:
        PeerError: within the context, when another process fails or does not answer in time.
    """
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        allowed = timeout - min(WINDING_UP, timeout / 2)
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=allowed))
            neighbours = _neighbours()
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise PeerError(f"the {size} processes of this job have not met at {place} in {allowed:g} s") from error
        yield Processes(rank, size, together, neighbours=neighbours)
        dist.destroy_process_group()  # not after an error, when the others may wait for something else
    except Exception as error:
        error.add_note(f"rank {rank} of {size}")
        raise


def launched() -> tuple[int, int]:
    """Rank and number of processes as ``torchrun`` sets them in the environment; 0 and 1 without it.

    Raises:
        UserError: if only part of it is there.
    """
    given = [name for name in _VARIABLES if name in os.environ]
    if "WORLD_SIZE" not in given:
        return 0, 1
    if missing := set(_VARIABLES).difference(given):
        raise UserError(f"expected {', '.join(_VARIABLES)} as torchrun sets them; {min(missing)} is missing")
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    wrong = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if wrong or not int(numbers["RANK"]) < int(numbers["WORLD_SIZE"]):
        found = ", ".join(wrong or [f"{name}={value}" for name, value in numbers.items()])
        raise UserError(f"expected RANK, from 0, below WORLD_SIZE as torchrun sets them; got {found}")
    return int(numbers["RANK"]), int(numbers["WORLD_SIZE"])


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process, given what the settings name: of several processes, each has a GPU of its own.

    Raises:
        UserError: if there are too few, or one of them is named.
    """
    if launched()[1] == 1 or device.type != "cuda":
        return device
    local = int(os.environ["LOCAL_RANK"])
    if device.index is not None:
        raise UserError(f"several processes train on a GPU each: expected device cuda or auto; got {device}")
    if local >= torch.cuda.device_count():
        raise UserError(f"expected a GPU for each process of this machine; found {torch.cuda.device_count()}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def first(ranks: Ranks) -> Iterator[None]:
    """Rank 0 does what is in the context before the others do: what is downloaded or written once."""
    if ranks.rank > 0:
        ranks.barrier()
    yield
    if ranks.rank == 0:
        ranks.barrier()


def _neighbours() -> tuple[int, ...]:
    machine = int(os.environ.get("GROUP_RANK", "0"))
    everyone = [torch.zeros(2, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, torch.tensor([machine, os.getpid()]))
    return tuple(process for where, process in (each.tolist() for each in everyone) if where == machine)


class _Buckets:
    """Gradients on their way: sent as soon as there are enough, while the backward pass makes others."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.waiting: list[Tensor] = []
        self.sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []

    def add(self, param: Tensor) -> None:
        """Take the gradient that a parameter has just got."""
        assert param.grad is not None
        self.waiting.append(param.grad)
        if sum(grad.nbytes for grad in self.waiting) >= BUCKET_BYTES:
            self._send()

    def finish(self) -> None:
        """Wait for all, and write the sums into the gradients."""
        if self.waiting:
            self._send()
        for grads, flat, work in self.sent:
            self.processes._call(work.wait)
            torch._foreach_copy_(grads, _unflatten(flat, grads))

    def _send(self) -> None:
        flat = torch.cat([grad.reshape(-1) for grad in self.waiting])
        work = self.processes._call(partial(dist.all_reduce, async_op=True), flat)
        self.sent.append((self.waiting, flat, work))
        self.waiting = []


class _Sum(torch.autograd.Function):
    """A sum over processes of what each holds, where each goes on with the sum: its own transpose."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        (total,) = processes.sum_all([tensor])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.sum_all([gradient])[0], None

    @staticmethod
    def jvp(ctx: FunctionCtx, tangent: Tensor, _: None) -> Tensor:
        return ctx.processes.sum_all([tangent])[0]  # type: ignore[attr-defined]


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a flat tensor in the shapes, types and memory formats of others."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [torch.empty_like(tensor).copy_(part.view(tensor.shape)) for part, tensor in zip(parts, like, strict=True)]
