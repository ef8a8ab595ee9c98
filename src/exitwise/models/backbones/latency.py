"""Places of exits by the clock: shares of the time that a network takes here, in place of its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from exitwise.kernels.inputs import Inputs, varied
from exitwise.kernels.modes import evaluating
from exitwise.kernels.timing import interleaved_medians, warn_if_busy
from exitwise.models.backbones.cut import staged
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.places import Place
from exitwise.models.backbones.tracing import Traced
from exitwise.models.heads import HeadFactory
from exitwise.models.staged import Stage, State

ROUNDS = 15


def by_latency(
    traced: Traced, places: dict[str, Place], num_classes: int, head: str | HeadFactory, example: Inputs, like: Tensor
) -> dict[str, Place]:
    """Return the places whose features are known, with shares of measured time.

    The network is cut at all of them; every part and every exit is timed in turn, on one sample, where the network
    lies, and medians count. Exits at equal shares are left after equal times, the exits before them included, if those
    take as long as exits do on average. A place is left out where a later one, its exit included, is left no later.
    Warns where the machine is busy.
    """
    warn_if_busy()
    known = {name: place for name, place in places.items() if place.point.feature.kind != "unknown"}
    points = [place.point for place in known.values()]
    if not points:
        return {}
    with torch.random.fork_rng(devices=[]):  # heads that are thrown away draw nothing from the caller's numbers
        model = staged(traced, places, points, num_classes, head, example, like).to(like.device)
    bodies, heads = _seconds(model, varied(example, 1, like))
    own = heads.pop()
    mean = sum(heads) / len(heads)
    spent = list(accumulate(bodies))
    full = spent[-1] + own
    found: dict[str, Place] = {}
    earliest = full
    for place, before, exit in reversed(list(zip(known.values(), spent, heads, strict=False))):
        left = before + exit
        if left < earliest:
            earliest = left
            # k equal exits leave after before + k * exit, of full + (K - 1) * exit: a share of k / K where this is one
            share = (left - mean) / max(full - mean, 1e-12)
            found[place.point.name] = place._replace(point=place.point._replace(share=share))
    return dict(reversed(found.items()))


def _seconds(model: ExitedModel, inputs: Inputs) -> tuple[list[float], list[float]]:
    """Return what the stages' bodies and their heads take."""
    functions: dict[tuple[str, int], Callable[[], object]] = {}
    with torch.inference_mode(), evaluating(model):
        state: State = inputs
        for k, stage in enumerate(cast("list[Stage]", list(model.stages))):
            functions["body", k] = partial(stage.body, state)
            state = stage.body(state)
            functions["head", k] = partial(stage.head, state)
        seconds = interleaved_medians(functions, ROUNDS)
    return [seconds["body", k] for k in range(model.exits)], [seconds["head", k] for k in range(model.exits)]
