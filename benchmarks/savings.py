"""What leaving early saves of a stream of batches, measured and as predicted from the time of each stage."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exitwise.timing import interleaved_medians


class Form(NamedTuple):
    """A network in one form, such as eager or ONNX.

    Attributes:
        full: runs the network without its early exits on a batch.
        early: runs it with them; returns a result with ``exit``.
        stages: run one stage each, its exit included where someone can leave there, on that stage's input.
        inputs: of each stage, for each batch.
    """

    full: Callable[[Any], object]
    early: Callable[[Any], Any]
    stages: Sequence[Callable[[Any], object]]
    inputs: Sequence[Sequence[Any]]


class Saving(NamedTuple):
    """Times in seconds per batch, and savings as 1 - cost / cost of the full network."""

    full: float
    early: float
    measured: float
    by_stages: float
    by_macs: float


def measure_savings(
    forms: Mapping[str, Form], batches: Mapping[str, Sequence[Any]], exit_macs: Sequence[float], rounds: int
) -> dict[str, Saving]:
    """Time every form on its batches, all in turn, batch by batch; medians of batches in which as many leave where."""
    exits = len(exit_macs)
    alike: dict[str, dict[tuple[int, ...], list[Any]]] = {name: defaultdict(list) for name in forms}
    functions: dict[Any, Callable[[], object]] = {}
    for name, form in forms.items():
        for batch in batches[name]:
            taken = form.early(batch).exit.tolist()
            alike[name][tuple(taken.count(k) for k in range(exits))].append(batch)
        functions[name, "full"] = _each_in_turn(form.full, batches[name])
        for counts, some in alike[name].items():
            functions[name, counts] = _each_in_turn(form.early, some)
        for k in range(exits):
            functions[name, k] = _each_in_turn(form.stages[k], form.inputs[k])
    seconds = interleaved_medians(functions, rounds)
    savings = {}
    for name in forms:
        total = len(batches[name])
        images = sum(sum(counts) * len(some) for counts, some in alike[name].items())
        left = [sum(counts[k] * len(some) for counts, some in alike[name].items()) / images for k in range(exits)]
        early = sum(len(some) * seconds[name, counts] for counts, some in alike[name].items()) / total
        full = seconds[name, "full"]
        reach = [1 - sum(left[:k]) for k in range(exits)]
        by_stages = 1 - sum(share * seconds[name, k] for k, share in enumerate(reach)) / full
        by_macs = 1 - sum(share * cost for share, cost in zip(left, exit_macs, strict=True)) / exit_macs[-1]
        savings[name] = Saving(full, early, 1 - early / full, by_stages, by_macs)
    return savings


def _each_in_turn(function: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], object]:
    """Each call is on the next of the inputs."""
    stream = itertools.cycle(inputs)
    return lambda: function(next(stream))
