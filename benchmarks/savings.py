"""What leaving early saves of a stream of batches, measured and as predicted from the time of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from exitwise.kernels.timing import interleaved_medians


class Form(NamedTuple):
    """A network in one form, such as eager or ONNX.

    Attributes:
        full: runs the network with all its exits on a batch: what budgets are shares of.
        plain: runs it without its early exits.
        early: runs it and lets images leave; returns a result with ``exit``.
        stages: run one stage each, its exit included where someone can leave there, on that stage's input.
    """

    full: Callable[[Any], object]
    plain: Callable[[Any], object]
    early: Callable[[Any], Any]
    stages: Sequence[Callable[[Any], object]]


class Saving(NamedTuple):
    """Times in seconds per batch, and savings as 1 - cost / cost of the full network."""

    full: float
    plain: float
    early: float
    measured: float
    by_stages: float
    by_macs: float


def measure_savings(
    form: Form, batches: Sequence[Any], calls: Sequence[tuple[int, Any]], exit_macs: Sequence[float], rounds: int
) -> Saving:
    """Time a form on all batches, and its bare stages on what reaches them.

    Of each batch the median of the rounds counts, in which the four ways take turns batch by batch: a machine that is
    slower for a second is so for all of them. Of every other batch they come the other way round, since what runs the
    same stages as the one before finds their weights in the caches.

    Args:
        form: the network.
        batches: the stream.
        calls: stage (0-based) and its input, in the order in which they arise when images leave.
        exit_macs: cost of leaving at each exit.
        rounds: times that the stream is run.
    """
    starts = [i for i, (stage, _) in enumerate(calls) if stage == 0]
    functions: dict[tuple[str, int], Callable[[], object]] = {}
    for i, (batch, start, end) in enumerate(zip(batches, starts, [*starts[1:], len(calls)], strict=True)):
        ways = {
            "full": partial(form.full, batch),
            "plain": partial(form.plain, batch),
            "early": partial(form.early, batch),
            "stages": partial(_run_stages, form, calls[start:end]),
        }
        functions.update(((name, i), ways[name]) for name in list(ways)[:: -1 if i % 2 else 1])
    seconds = interleaved_medians(functions, rounds)

    def mean(way: str) -> float:
        return sum(seconds[way, i] for i in range(len(batches))) / len(batches)

    full, plain, early, stages = map(mean, ("full", "plain", "early", "stages"))
    exits = [exit for batch in batches for exit in form.early(batch).exit.tolist()]
    by_macs = sum(exit_macs[exit] for exit in exits) / len(exits)
    return Saving(full, plain, early, 1 - early / full, 1 - stages / full, 1 - by_macs / exit_macs[-1])


def recorded(function: Callable[..., Any], calls: list[tuple[int, Any]], stage: int, at: int = 0) -> Callable[..., Any]:
    """The function of a stage, which also notes what it is called with: its positional argument ``at``."""

    def call(*arguments: Any) -> Any:
        calls.append((stage, arguments[at]))
        return function(*arguments)

    return call


def _run_stages(form: Form, calls: Sequence[tuple[int, Any]]) -> None:
    for stage, given in calls:
        form.stages[stage](given)
