"""A network and what its exits say of held-out samples: a run's calibration images, or a loader's."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exitwise.catalogue.sources import SOURCES
from exitwise.data import Splits
from exitwise.data.fingerprints import noted, unused
from exitwise.data.loaders import pairs_of
from exitwise.data.splits import Split
from exitwise.deploy.calibrating import Recorded, check_samples
from exitwise.deploy.groups import Groups, check_groups, groups_of
from exitwise.deploy.origin import Origin
from exitwise.errors import ExitwiseWarning, UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.kernels.inputs import noun_of
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.cascade import Cascade
from exitwise.models.staged import StagedModel, check_staged
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.other_images import images_at


class HeldOut(NamedTuple):
    """A network and what its exits said of held-out samples: logits (N, K, C), targets (N), names of classes.

    ``checkpoint`` is the name of its weights in a run; ``seed`` that of the division for a guarantee; ``samples`` are
    fingerprints of a loader's samples; ``folder`` is the run; ``groups`` that of each sample, where they are known;
    ``origin`` says which images they are.
    """

    model: StagedModel
    logits: NDArray[Any]
    targets: NDArray[np.int64]
    checkpoint: str
    seed: int
    classes: Sequence[str]
    samples: frozenset[int] = frozenset()
    folder: Run | None = None
    groups: Sequence[str] | None = None
    origin: Origin | None = None

    @property
    def recorded(self) -> Recorded:
        """What the exits said."""
        return Recorded(self.logits, self.targets, self.classes, self.seed, self.groups, self.origin)


def exits_of(run: str | Path | StagedModel) -> int:
    """Return how many exits a run or a network has."""
    if isinstance(run, nn.Module):
        check_staged(run)
        return run.exits
    return Run(run).exits


def is_cascade(run: str | Path | StagedModel) -> bool:
    """Return whether a run or a network is a cascade, whose shares of cost are of its last network alone."""
    return isinstance(run, Cascade) if isinstance(run, nn.Module) else Run(run).cascade is not None


def held_out_of(
    run: str | Path | StagedModel,
    held_out: Iterable[Any] | None,
    device: str,
    splits: Splits | None,
    data: str | Path | None = None,
    groups: Groups | Sequence[str] | None = None,
) -> HeldOut:
    """Return what the exits of a run say of its calibration images, which may lie at ``data`` now, or of others there,
    in a folder per class; or those of a network of held-out samples. ``groups`` are of a run's images by name, of
    samples in order.

    Raises:
        UserError: for a network without held-out samples, or a run with.
        DataError: for unsuitable samples.
    """
    if isinstance(run, nn.Module):
        if data is not None:
            raise UserError(f"a network is calibrated on a loader's samples; got {data} too")
        return _of_network(run, held_out, groups)
    if held_out is not None:
        raise UserError(f"a run has calibration samples of its own; got held-out samples too, with {run}")
    return _of_run(Run(run), device, splits, data, groups)


def _of_run(
    run: Run,
    device: str,
    splits: Splits | None,
    data: str | Path | None,
    groups: Groups | Sequence[str] | None,
) -> HeldOut:
    place = pick_device(device)
    model = run.model(place)
    others = None if data is None or _has_moved_to(data, run) else images_at(Path(data), run)
    split = (splits or run.at(data).splits()).calibration if others is None else others
    check_samples(split.targets.numpy(), run.classes, model.exits, run.settings.noun)
    groups_in(groups, split)
    logits, targets = collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), place)
    parts = groups_in(groups, split)
    if others is not None and (broken := list(split.source.ledger.skipped)):
        warnings.warn(f"{len(broken)} broken images are left out, such as {broken[0]}", ExitwiseWarning, stacklevel=4)
    best, seed = run.best().name, run.settings.split_seed
    place_of = None if others is None else str(Path(data or "").absolute())
    origin = Origin(len(targets), split.fingerprint(), place_of, run.settings.noun)
    found = HeldOut(model, logits, targets, best, seed, run.classes, folder=run, groups=parts, origin=origin)
    found.recorded.check()
    return found


def _of_network(
    model: StagedModel, held_out: Iterable[Any] | None, groups: Groups | Sequence[str] | None = None
) -> HeldOut:
    if held_out is None:
        raise UserError("a network is calibrated on held-out samples; got none (the second argument)")
    device = next(model.parameters()).device
    samples: set[int] = set()
    name = "held-out loader"
    batches = noted(unused(pairs_of(held_out, model, name), {"fitted on": model.fitted_on}, name), samples)
    logits, targets = collect_logits(model, batches, device)
    parts = groups_in_order(groups, len(targets))
    origin = Origin(len(targets), noun=noun_of(model.example))
    found = HeldOut(
        model, logits, targets, "", 0, class_numbers(model), frozenset(samples), groups=parts, origin=origin
    )
    found.recorded.check()
    if isinstance(model, ExitedModel) and (untrained := model.as_made()):
        numbers = ", ".join(map(str, untrained))
        warnings.warn(
            f"expected exits that were trained; got exit {numbers} as add_exits made it: fit_exits comes first",
            ExitwiseWarning,
            stacklevel=4,
        )
    return found


def _has_moved_to(data: str | Path, run: Run) -> bool:
    """Return whether the images that a run was made with lie in a folder."""
    if run.settings.data in SOURCES:
        return False
    try:
        run.at(data).look_up_splits()
    except UserError:
        return False
    return True


def groups_in(groups: Groups | Sequence[str] | None, split: Split) -> list[str] | None:
    """Return the group of each image of a split that is not known to be broken: as given, else as the data says, unless
    there is a group of a single image; None without groups.

    Raises:
        DataError: if they do not fit; see :func:`~exitwise.deploy.groups.groups_of`.
    """
    if groups is None:
        own = split.readable_groups()
        return own if own and min(Counter(own).values()) > 1 else None
    if not isinstance(groups, (str, PathLike, Mapping)):
        raise UserError(f"expected a CSV file, or groups by image, for a run; got {type(groups).__name__}")
    return groups_of(groups, split.readable())


def groups_in_order(groups: Groups | Sequence[str] | None, samples: int) -> list[str] | None:
    """Return the group of each sample of a loader; None without groups.

    Raises:
        UserError: unless there is one for each sample, in order.
        DataError: for a group of a single one.
    """
    if groups is None:
        return None
    if isinstance(groups, (str, PathLike, Mapping)) or len(groups) != samples:
        count = type(groups).__name__ if isinstance(groups, (str, PathLike, Mapping)) else len(groups)
        raise UserError(f"expected a group for each of the loader's {samples} samples, in their order; got {count}")
    return check_groups([str(group) for group in groups])


def class_numbers(model: StagedModel) -> list[str]:
    """Return what the classes of a network that names none are called."""
    return [str(label) for label in range(model.num_classes)]
