"""What to try on some data within a limit, exits among it or not: said before anything is trained."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exitwise.advising.advice import Advice, Suggestion, Versus, in_order
from exitwise.advising.belief import Interval, Option, believe, early
from exitwise.advising.choice import at_size, find, pick
from exitwise.advising.leaving import Leaving, leaving
from exitwise.advising.probe import Probe, featured, probe
from exitwise.advising.times import Time, Timeable, timeable, times_of
from exitwise.benching.timing import BusyWarning, measure_exit_seconds, warn_if_busy
from exitwise.budgets import check_whole
from exitwise.catalogue.backbones import BACKBONE_EXITS
from exitwise.catalogue.published import Published, published, warn_if_old
from exitwise.data import Preprocessing, Split, load
from exitwise.data.loaders import pairs_of
from exitwise.errors import DataError, UserError, in_a_line
from exitwise.kernels.inputs import Inputs, samples_in, taken
from exitwise.models import count_cost
from exitwise.models.backbones.libraries import check_backbone_name, create_backbone, data_config
from exitwise.models.staged import StagedModel
from exitwise.runs.build import pick_device
from exitwise.shown import macs as macs_text
from exitwise.shown import milliseconds, percent, say

IMAGES, SECONDS = 3000, 60.0
"""Images that are probed on, at most, and about how long a network may take over them."""

FIRST_ROUNDS, BATCH = 10, 64

SPARED = 0.95
"""Of a limit, what exits are calibrated for: other images may leave a little later."""

Batches = Callable[[StagedModel, int], Iterable[tuple[Inputs, Tensor]]]
"""From what they are for, and a number of samples, to batches with about that many."""


@dataclass
class Candidate:
    """A network that may be tried.

    Attributes:
        name: as timm has it.
        network: with the weights at hand, or random ones.
        example: of its inputs.
        row: what is published of it, if anything.
        batches: to probe it on; None without weights.
        timeable, seconds: once it has been timed.
        probe: once it has been probed.
    """

    name: str
    network: nn.Module
    example: Inputs
    row: Published | None = None
    batches: Batches | None = None
    timeable: Timeable | None = None
    seconds: Time | None = None
    probe: Probe | None = None

    @property
    def image_size(self) -> int | None:
        """Side of its images of three channels in pixels; None for other inputs."""
        shape = self.example.shape if isinstance(self.example, Tensor) else ()
        return int(shape[-1]) if len(shape) == 4 and shape[1] == 3 else None


def advise(
    source: str | Path | nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    latency: float | None = None,
    macs: float | None = None,
    weights: Mapping[str, str | Path] | None = None,
    image_size: int | None = None,
    images: int = IMAGES,
    exits: int = BACKBONE_EXITS,
    seed: int = 0,
    device: str = "auto",
    tell: Callable[[str], object] = say,
) -> Advice:
    """Say what to try within a limit, in order, before anything is trained; minutes, most of them for the probes.

    Candidates are those whose weights are at hand, and a handful of timm's that by its published tables are the most
    accurate within the limit. All are timed here, one image at a time, whatever their weights: in ONNX Runtime, or as
    they are where they have no such form. Those at hand are probed: linear heads on their features, at their end and at
    earlier depths, each sample answered by heads that were fitted on others. Expected accuracies are after fine-tuning,
    with 95 % intervals: from the probe, and of the rest from their accuracy on ImageNet. What exits save is told from
    the same probe, by thresholds calibrated on some of its samples and tried on the others. Nothing is downloaded.

    Args:
        source: a folder of images or the name of a data set, of which only training images are used; or a network, a
            classifier of whatever classes.
        loader: of a network, batches as (inputs, targets, ...) or mappings, of samples that it was not trained on.
        latency: most seconds per image, one by one; with exits on average.
        macs: most multiply-accumulates per image, in its place.
        weights: files of weights at hand, by names of timm's networks; of a data set.
        image_size: side of the images for all networks; by default each network's own.
        images: how many to probe on, at most; fewer where a network would take more than a minute.
        exits: number of exits, the network's end included.
        seed: of the choice of samples, and of the probes.
        device: where to probe on a data set; a network itself is probed where it lies. Times are of the CPU.
        tell: is told what is done next; by default it is printed on standard error.

    Returns:
        Suggestions in order, what exits on larger networks give beside smaller ones, and what all of it rests on.

    Raises:
        UserError: unless one limit is given, for one that no candidate meets, unknown or unsuitable weights, or a
            network without a loader.
        DataError: for no images, or too few.
    """
    limit, by_time = _limit(latency, macs)
    check_whole("exits", exits, 2)
    check_whole("images", images, 1)
    if image_size is not None:
        check_whole("image_size", image_size, 16)
    warn_if_old(date.today())
    warn_if_busy()
    if isinstance(source, nn.Module):
        if loader is None or weights or image_size is not None:
            raise UserError("a network is advised on with a loader: advise(network, loader, ...); got other arguments")
        candidates, classes = [_of_caller(source, loader)], None
        image_size = candidates[0].image_size
    else:
        if loader is not None:
            raise UserError(f"a data set has images of its own; got a loader too, with {source}")
        place = pick_device(device)
        candidates, classes = _at_hand(str(source), weights or {}, image_size, seed, place)
    left_out: dict[str, str] = {}
    for each in candidates:
        tell(f"preparing {each.name} ...")
        each.timeable = timeable(each.network, each.example)
    if all(each.image_size for each in candidates):
        candidates += _others(candidates, classes or 2, image_size, limit, by_time, left_out, tell)
    tell(f"timing {len(candidates)} networks ...")
    _time(candidates)
    _check_reached(candidates, limit, by_time)
    _probe(candidates, classes, images, exits, seed, tell)
    return _advice(candidates, limit, by_time, seed, left_out)


def _limit(latency: float | None, macs: float | None) -> tuple[float, bool]:
    given = [value for value in (latency, macs) if value is not None]
    if len(given) != 1:
        raise UserError(f"expected one limit, latency or macs; got {'both' if given else 'none'}")
    if isinstance(given[0], bool) or not isinstance(given[0], (int, float)) or not 0 < given[0] < math.inf:
        raise UserError(f"expected a positive limit, in seconds or multiply-accumulates; got {given[0]!r}")
    return given[0], latency is not None


def _of_caller(network: nn.Module, loader: Iterable[Any]) -> Candidate:
    """Return a caller's own network; what timm says of it is known if it is one of timm's."""
    first = next(iter(loader), None)
    found = taken(first, torch.zeros(1)) if first is not None else None
    if found is None or not isinstance(found[0], Tensor) or not len(found[0]):
        raise DataError(
            "expected batches (inputs, targets, ...) in the loader, with inputs as a tensor; got other ones"
        )
    example = found[0][:1].cpu()

    def batches(model: StagedModel, count: int) -> Iterator[tuple[Inputs, Tensor]]:
        return _first(pairs_of(loader, model), count)

    config = getattr(network, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else None
    size = int(example.shape[-1]) if example.dim() == 4 else 0
    row = find(name, size) if name and size else None
    return Candidate(name or "network", network, example, row, batches)


def _first(pairs: Iterable[tuple[Inputs, Tensor]], count: int) -> Iterator[tuple[Inputs, Tensor]]:
    seen = 0
    for inputs, targets in pairs:
        yield inputs, targets
        seen += samples_in(inputs)
        if seen >= count:
            return


def _at_hand(
    data: str, weights: Mapping[str, str | Path], image_size: int | None, seed: int, place: torch.device
) -> tuple[list[Candidate], int]:
    """Return the networks whose weights are given, and the number of classes."""
    for name in weights:
        check_backbone_name(f"timm/{name}")
    any_size = Preprocessing(image_size or 224, (0.5,) * 3, (0.5,) * 3, "resize")
    splits = load(data, any_size)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    found = []
    for name, file in weights.items():
        config = data_config(f"timm/{name}")
        size = image_size or config.image_size
        network = create_backbone(f"timm/{name}", None, (3, size, size), file).eval().to(place)
        preprocessing = Preprocessing(size, config.mean, config.std, "resize", config.interpolation, config.crop)
        split = replace(splits.train, preprocessing=preprocessing)
        found.append(Candidate(name, network, torch.zeros(1, 3, size, size), find(name, size), _of_split(split, order)))
    return found, len(splits.classes)


def _of_split(split: Split, order: Tensor) -> Batches:
    return lambda model, count: replace(split, indices=split.indices[order[:count]].sort().values).batches(BATCH)


def _others(
    hand: Sequence[Candidate],
    classes: int,
    image_size: int | None,
    limit: float,
    by_time: bool,
    left_out: dict[str, str],
    tell: Callable[[str], object],
) -> list[Candidate]:
    """Return published networks that may be the most accurate within the limit, with random weights.

    How much slower or faster this machine is than that of the table is told by the networks at hand or, without any, by
    a first choice.
    """
    known = {each.name.split(".")[0] for each in hand}
    rows = [row for row in at_size(published(), image_size) if row.architecture not in known]
    made: dict[str, Candidate] = {}
    chosen = [each for each in hand if each.row is not None]
    for _ in range(1 if chosen or not by_time else 2):
        scale = _scale([*chosen, *made.values()]) if by_time else 1.0

        def cost(row: Published, scale: float = scale) -> float:
            return row.seconds * scale if by_time else row.macs

        picked = pick(rows, cost, limit)
        for row in picked:
            if row.name not in made and row.name not in left_out:
                tell(f"preparing {row.name} ...")
                try:
                    made[row.name] = _random(row, classes)
                except UserError as error:
                    left_out[row.name] = in_a_line(error)
        made = {row.name: made[row.name] for row in picked if row.name in made}
    return list(made.values())


def _random(row: Published, classes: int) -> Candidate:
    shape = (3, row.image_size, row.image_size)
    network = create_backbone(f"timm/{row.name}", classes, shape).eval()
    example = torch.zeros(1, *shape)
    return Candidate(row.name, network, example, row, None, timeable(network, example))


def _scale(candidates: Sequence[Candidate]) -> float:
    """Return how much longer networks take here than by the table; 1 where none can tell."""
    _time(candidates, FIRST_ROUNDS)
    ratios = []
    for each in candidates:
        assert each.row is not None
        assert each.seconds is not None
        area = ((each.image_size or each.row.image_size) / each.row.image_size) ** 2
        ratios.append(each.seconds.median / (each.row.seconds * area))
    return statistics.median(ratios) if ratios else 1.0


def _time(candidates: Sequence[Candidate], rounds: int | None = None) -> None:
    calls = {each.name: each.timeable.call for each in candidates if each.timeable is not None}
    times = times_of(calls, rounds) if rounds else times_of(calls)
    for each in candidates:
        each.seconds = times[each.name]


def _check_reached(candidates: Sequence[Candidate], limit: float, by_time: bool) -> None:
    """Raise UserError unless a candidate meets the limit."""
    costs = {each.name: _cost(each, by_time) for each in candidates}
    if not costs:
        raise UserError("expected a network that could be built here; none of the candidates could")
    nearest = min(costs, key=lambda name: costs[name])
    if costs[nearest] > limit:
        takes = f"takes {_shown(costs[nearest], by_time)}"
        raise UserError(
            f"expected a limit that a candidate meets; the nearest, {nearest}, {takes}; got {_shown(limit, by_time)}"
        )


def _cost(candidate: Candidate, by_time: bool) -> float:
    assert candidate.seconds is not None
    assert candidate.timeable is not None
    return candidate.seconds.median if by_time else candidate.timeable.macs


def _shown(cost: float, by_time: bool) -> str:
    return milliseconds(cost) if by_time else f"{macs_text(cost)} MACs"


def _probe(
    candidates: Sequence[Candidate],
    classes: int | None,
    images: int,
    exits: int,
    seed: int,
    tell: Callable[[str], object],
) -> None:
    """Probe those whose weights are at hand, all on the same samples."""
    hand = [each for each in candidates if each.batches is not None]
    slowest = max((each.seconds.median for each in hand if each.seconds is not None), default=0.0)
    count = min(images, max(int(SECONDS / slowest), 1)) if hand else 0
    for each in hand:
        assert each.batches is not None
        tell(f"probing {each.name} ...")
        model = featured(each.network, each.example, exits)
        each.probe = probe(model, each.batches(model, count), classes, seed)


def _advice(
    candidates: Sequence[Candidate], limit: float, by_time: bool, seed: int, left_out: dict[str, str]
) -> Advice:
    hand = [index for index, each in enumerate(candidates) if each.probe is not None]
    probes = [probed for each in candidates if (probed := each.probe) is not None]
    lines: list[tuple[Candidate, Leaving | None, Option]] = [
        (each, None, Option(index)) for index, each in enumerate(candidates)
    ]
    costs = {index: _exit_costs(candidates[index], by_time) for index in hand}
    for index in hand:
        each = candidates[index]
        left = _leaving(each, costs[index][0], limit, seed)
        if left is not None:
            assert each.probe is not None
            lines.append((each, left, early(index, each.probe.correct, left.correct)))
    pairs: list[tuple[int, int, Option | None]] = []
    for large, small in permutations(hand, 2):
        target, (own, _) = _cost(candidates[small], by_time), costs[large]
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
    draws = believe(imagenet, hand, correct, [*options, *extra], seed)
    within = [left is not None or _cost(each, by_time) <= limit for each, left, _ in lines]
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
    words = f"at most {_shown(limit, by_time)} an image"
    return Advice(suggestions, versus, left_out, words, len(probes[0].targets) if probes else 0)


def _behind(draws: NDArray[np.float64], index: int, first: int) -> Interval | None:
    return None if index == first else Interval.of(draws[:, index] - draws[:, first])


def _exit_costs(candidate: Candidate, by_time: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what leaving at each exit of a probed network costs, as it is limited, and its share of the time."""
    assert candidate.probe is not None
    assert candidate.seconds is not None
    model = copy.deepcopy(candidate.probe.model).cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BusyWarning)
        seconds = measure_exit_seconds(model)
    shares = tuple(each / seconds[-1] for each in seconds)
    if by_time:
        return tuple(share * candidate.seconds.median for share in shares), shares
    return tuple(map(float, count_cost(model).macs)), shares


def _leaving(candidate: Candidate, costs: Sequence[float], limit: float, seed: int) -> Leaving | None:
    """Return how images leave within the limit or, where the network in full is within it, at a small loss; None where
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
    )
