"""Networks that may be tried: those at hand, and published ones; each is made, timed, and probed if it has weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exitwise.advising.choice import at_size, find, pick
from exitwise.advising.probe import Probe, featured, probe
from exitwise.advising.times import Time, Timeable, timeable, times_of
from exitwise.catalogue.published import Published, published
from exitwise.data import Preprocessing, Split, load
from exitwise.data.loaders import pairs_of
from exitwise.errors import DataError, UserError, in_a_line
from exitwise.kernels.inputs import Inputs, samples_in, taken
from exitwise.models.backbones.libraries import check_backbone_name, create_backbone, data_config
from exitwise.models.staged import StagedModel
from exitwise.shown import macs as macs_text
from exitwise.shown import milliseconds

SECONDS, FIRST_ROUNDS, BATCH = 60.0, 10, 64
"""About how long a network may be probed; rounds of a first timing; images at a time."""

Batches = Callable[[StagedModel, int], Iterable[tuple[Inputs, Tensor]]]
"""From what they are for, and a number of samples, to batches with about that many."""

Tell = Callable[[str], object]


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

    @property
    def is_smaller(self) -> bool:
        """Return whether its images are smaller than those of its published accuracy."""
        row = find(self.name, self.image_size) if self.row is not None and self.image_size else None
        return row is not None and self.image_size is not None and self.image_size < row.image_size


class Limit(NamedTuple):
    """Most that an image may cost: seconds, if ``by_time``, else multiply-accumulates."""

    value: float
    by_time: bool

    def of(self, candidate: Candidate) -> float:
        """Return what a candidate costs that was timed."""
        assert candidate.seconds is not None
        assert candidate.timeable is not None
        return candidate.seconds.median if self.by_time else candidate.timeable.macs

    def of_row(self, row: Published, scale: float) -> float:
        """Return what a published network costs where times are ``scale`` times those of the table."""
        return row.seconds * scale if self.by_time else row.macs

    def shown(self, cost: float | None = None) -> str:
        """Return a cost in words; the limit itself by default."""
        cost = self.value if cost is None else cost
        return milliseconds(cost) if self.by_time else f"{macs_text(cost)} MACs"


def of_caller(network: nn.Module, loader: Iterable[Any]) -> Candidate:
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


def at_hand(
    data: str, weights: Mapping[str, str | Path], image_size: int | None, seed: int, place: torch.device
) -> tuple[list[Candidate], int]:
    """Return the networks whose weights are given, and the number of classes."""
    for name, file in weights.items():
        check_backbone_name(f"timm/{name}")
        if not Path(file).exists():
            raise UserError(f"expected weights of {name} at {file}; there is nothing")
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


def others(
    hand: Sequence[Candidate],
    classes: int,
    image_size: int | None,
    limit: Limit,
    left_out: dict[str, str],
    tell: Tell,
) -> list[Candidate]:
    """Return published networks that may be the most accurate within the limit, with random weights.

    How much slower or faster this machine is than that of the table is told by the networks at hand or, without any, by
    a first choice.
    """
    known = {each.name.split(".")[0] for each in hand}
    rows = [row for row in at_size(published(), image_size) if row.architecture not in known]
    made: dict[str, Candidate] = {}
    chosen = [each for each in hand if each.row is not None]
    for _ in range(1 if chosen or not limit.by_time else 2):
        scale = _scale([*chosen, *made.values()]) if limit.by_time else 1.0
        picked = pick(rows, partial(limit.of_row, scale=scale), limit.value)
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
    measure(candidates, FIRST_ROUNDS)
    ratios = []
    for each in candidates:
        assert each.row is not None
        assert each.seconds is not None
        area = ((each.image_size or each.row.image_size) / each.row.image_size) ** 2
        ratios.append(each.seconds.median / (each.row.seconds * area))
    return statistics.median(ratios) if ratios else 1.0


def measure(candidates: Sequence[Candidate], rounds: int | None = None) -> None:
    """Time all candidates in turn."""
    calls = {each.name: each.timeable.call for each in candidates if each.timeable is not None}
    times = times_of(calls, rounds) if rounds else times_of(calls)
    for each in candidates:
        each.seconds = times[each.name]


def probe_all(
    candidates: Sequence[Candidate],
    classes: int | None,
    images: int,
    exits: int,
    seed: int,
    tell: Tell,
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
