"""From candidates, their times and their probes to what is advised."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from exitwise.advising.advice import Advice, Suggestion, Versus, in_order
from exitwise.advising.belief import Interval, Option, believe, early
from exitwise.advising.candidates import Candidate, Limit
from exitwise.advising.leaving import Leaving, leaving
from exitwise.advising.times import Time
from exitwise.benching.timing import measure_exit_seconds
from exitwise.kernels.timing import BusyWarning
from exitwise.models import count_cost
from exitwise.shown import percent

SPARED = 0.95
"""Of a limit, what exits are calibrated for: other images may leave a little later."""


def conclude(candidates: Sequence[Candidate], limit: Limit, seed: int, left_out: dict[str, str]) -> Advice:
    """Return what is advised, from candidates that were timed and, where weights are at hand, probed."""
    hand = [index for index, each in enumerate(candidates) if each.probe is not None]
    probes = [probed for each in candidates if (probed := each.probe) is not None]
    lines: list[tuple[Candidate, Leaving | None, Option]] = [
        (each, None, Option(index)) for index, each in enumerate(candidates)
    ]
    costs = {index: _exit_costs(candidates[index], limit) for index in hand}
    for index in hand:
        each = candidates[index]
        left = _leaving(each, costs[index][0], limit.value, seed)
        if left is not None:
            assert each.probe is not None
            lines.append((each, left, early(index, each.probe.correct, left.correct)))
    pairs: list[tuple[int, int, Option | None]] = []
    for large, small in permutations(hand, 2):
        target, (own, _) = limit.of(candidates[small]), costs[large]
        if len(own) < 2 or target >= own[-1]:
            continue
        option = None
        if target >= own[0]:
            probed = candidates[large].probe
            assert probed is not None
            left = leaving(probed.logits, probed.targets, own, target, seed)
            option = early(large, probed.correct, left.correct)
        pairs.append((large, small, option))
    options = [option for *_, option in lines]
    extra = [option for *_, option in pairs if option is not None]
    imagenet = [None if each.row is None else each.row.accuracy for each in candidates]
    correct = np.stack([each.correct for each in probes], 1) if probes else None
    smaller = [each.is_smaller for each in candidates]
    draws = believe(imagenet, hand, correct, [*options, *extra], seed, smaller)
    within = [left is not None or limit.of(each) <= limit.value for each, left, _ in lines]
    order = in_order(draws[:, : len(options)], within)
    suggestions = [
        _suggestion(*lines[index], draws[:, index], _behind(draws, index, order[0]), costs, within[index])
        for index in order
    ]
    extras = iter(range(len(options), draws.shape[1]))
    versus = [
        Versus(
            candidates[large].name,
            candidates[small].name,
            None if option is None else Interval.of(draws[:, next(extras)] - draws[:, small]),
        )
        for large, small, option in pairs
    ]
    words = f"at most {limit.shown()} an image"
    return Advice(suggestions, versus, left_out, words, len(probes[0].targets) if probes else 0)


def _behind(draws: NDArray[np.float64], index: int, first: int) -> Interval | None:
    return None if index == first else Interval.of(draws[:, index] - draws[:, first])


def _exit_costs(candidate: Candidate, limit: Limit) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what leaving at each exit of a probed network costs, as it is limited, and its share of the time."""
    assert candidate.probe is not None
    assert candidate.seconds is not None
    model = copy.deepcopy(candidate.probe.model).cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BusyWarning)
        seconds = measure_exit_seconds(model)
    shares = tuple(each / seconds[-1] for each in seconds)
    if limit.by_time:
        return tuple(share * candidate.seconds.median for share in shares), shares
    return tuple(map(float, count_cost(model).macs)), shares


def _leaving(candidate: Candidate, costs: Sequence[float], limit: float, seed: int) -> Leaving | None:
    """Return how images leave within the limit or, where the full network is within it, at a small loss; None where
    nothing is saved, or the first exit costs too much."""
    probed = candidate.probe
    assert probed is not None
    if len(costs) < 2 or costs[0] > limit:
        return None
    budget = max(costs[0], SPARED * limit) if costs[-1] > limit else None
    found = leaving(probed.logits, probed.targets, costs, budget, seed)
    return found if found.mean(costs) < costs[-1] else None


def _suggestion(
    candidate: Candidate,
    left: Leaving | None,
    option: Option,
    draws: NDArray[np.float64],
    behind: Interval | None,
    costs: Mapping[int, tuple[Sequence[float], Sequence[float]]],
    within: bool,
) -> Suggestion:
    assert candidate.seconds is not None
    assert candidate.timeable is not None
    seconds, spent = candidate.seconds, candidate.timeable.macs
    if candidate.probe is None:
        basis = f"ImageNet {percent(candidate.row.accuracy)}" if candidate.row is not None else ""
    elif left is None:
        basis = f"probe {percent(float(candidate.probe.correct.mean()))}"
    else:
        share = left.mean(costs[option.network][1])
        seconds = Time(*(share * value for value in seconds))
        spent = left.mean(count_cost(candidate.probe.model).macs)
        basis = f"probe {percent(float(left.correct.mean()))}"
    return Suggestion(
        candidate.name,
        left is not None,
        candidate.image_size,
        seconds,
        candidate.timeable.form,
        spent,
        Interval.of(draws),
        behind,
        within,
        basis,
        candidate.probe is not None,
        candidate.is_smaller,
    )
