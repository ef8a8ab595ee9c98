"""What to try on some data within a limit, exits among it or not: said before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from exitwise.advising.advice import Advice
from exitwise.advising.candidates import Candidate, Limit, at_hand, measure, of_caller, others, probe_all
from exitwise.advising.conclusion import conclude
from exitwise.advising.times import timeable
from exitwise.budgets import check_whole
from exitwise.catalogue.backbones import BACKBONE_EXITS
from exitwise.catalogue.published import warn_if_old
from exitwise.errors import UserError
from exitwise.kernels.timing import warn_if_busy
from exitwise.runs.build import pick_device
from exitwise.shown import say

IMAGES = 3000
"""Images that are probed on, at most."""


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
    limit = _limit(latency, macs)
    check_whole("exits", exits, 2)
    check_whole("images", images, 1)
    if image_size is not None:
        check_whole("image_size", image_size, 16)
    if isinstance(source, nn.Module):
        if loader is None or weights or image_size is not None:
            raise UserError("a network is advised on with a loader: advise(network, loader, ...); got other arguments")
        candidates, classes = [of_caller(source, loader)], None
        image_size = candidates[0].image_size
    else:
        if loader is not None:
            raise UserError(f"a data set has images of its own; got a loader too, with {source}")
        place = pick_device(device)
        candidates, classes = at_hand(str(source), weights or {}, image_size, seed, place)
    warn_if_old(date.today())
    warn_if_busy()
    left_out: dict[str, str] = {}
    for each in candidates:
        tell(f"preparing {each.name} ...")
        each.timeable = timeable(each.network, each.example)
    if all(each.image_size for each in candidates):
        candidates += others(candidates, classes or 2, image_size, limit, left_out, tell)
    tell(f"timing {len(candidates)} networks ...")
    measure(candidates)
    _check_reached(candidates, limit)
    probe_all(candidates, classes, images, exits, seed, tell)
    return conclude(candidates, limit, seed, left_out)


def _limit(latency: float | None, macs: float | None) -> Limit:
    given = [value for value in (latency, macs) if value is not None]
    if len(given) != 1:
        raise UserError(f"expected one limit, latency or macs; got {'both' if given else 'none'}")
    if isinstance(given[0], bool) or not isinstance(given[0], (int, float)) or not 0 < given[0] < math.inf:
        raise UserError(f"expected a positive limit, in seconds or multiply-accumulates; got {given[0]!r}")
    return Limit(given[0], latency is not None)


def _check_reached(candidates: Sequence[Candidate], limit: Limit) -> None:
    """Raise UserError unless a candidate meets the limit."""
    costs = {each.name: limit.of(each) for each in candidates}
    if not costs:
        raise UserError("expected a network that could be built here; none of the candidates could")
    nearest = min(costs, key=lambda name: costs[name])
    if costs[nearest] > limit.value:
        takes = f"takes {limit.shown(costs[nearest])}"
        raise UserError(
            f"expected a limit that a candidate meets; the nearest, {nearest}, {takes}; got {limit.shown()}"
        )
