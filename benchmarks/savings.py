"""What leaving early saves of a stream of batches, measured and as predicted from the time of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from exitwise.timing import interleaved_medians


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
    """Time a form on all batches, and its bare stages on what reaches them; medians of interleaved rounds.

    Args:
        form: the network.
        batches: the stream.
        calls: stage (0-based) and its input, in the order in which they arise when images leave.
        exit_macs: cost of leaving at each exit.
        rounds: times that the stream is run.
    """
    functions: dict[Any, Callable[[], object]] = {
        name: _on_all(getattr(form, name), batches) for name in ("full", "plain", "early")
    }
    functions["stages"] = _on_all(lambda call: form.stages[call[0]](call[1]), calls)
    seconds = interleaved_medians(functions, rounds)
    full, plain, early, stages = (seconds[name] / len(batches) for name in functions)
    exits = [exit for batch in batches for exit in form.early(batch).exit.tolist()]
    by_macs = sum(exit_macs[exit] for exit in exits) / len(exits)
    return Saving(full, plain, early, 1 - early / full, 1 - stages / full, 1 - by_macs / exit_macs[-1])


def recorded(function: Callable[..., Any], calls: list[tuple[int, Any]], stage: int, at: int = 0) -> Callable[..., Any]:
    """The function of a stage, which also notes what it is called with: its positional argument ``at``."""

    def call(*arguments: Any) -> Any:
        calls.append((stage, arguments[at]))
        return function(*arguments)

    return call


def _on_all(function: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], object]:
    def run() -> None:
        for each in inputs:
            function(each)

    return run
