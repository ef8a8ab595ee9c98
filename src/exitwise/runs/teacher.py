"""A run as the teacher of another one: whether it may be, and what it says of that one's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exitwise.data import Splits
from exitwise.errors import UserError
from exitwise.models.cascade import Seen, View
from exitwise.runs.folder import Run, check_same_classes
from exitwise.runs.records.teacher import TEACHER, TeacherRecord
from exitwise.settings.schema import Settings
from exitwise.training.checkpoint import sha256_of_tensors


class Teacher(NamedTuple):
    """A trained network that another one learns from.

    Attributes:
        record: which it is.
        answer: from the other one's images (B, channels, height, width) to logits (B, classes) of the last exit.
    """

    record: TeacherRecord
    answer: Callable[[Tensor], Tensor]


def find_teacher(settings: Settings, out: Path, splits: Splits, device: torch.device) -> Teacher:
    """Return the teacher that the settings of a run name, by its best epoch, in eval mode.

    It sees the images that the student sees, resized and normalised anew where it was trained on others.

    Args:
        settings: of the student.
        out: the student's run folder, which may not be there yet.
        splits: of the student.
        device: where to train.

    Raises:
        UserError: for a run without a checkpoint, of other classes or other channels, whose training images the student
            holds out, that is tested on images which the student trains on, or another one than ``out`` was begun with.
    """
    run = Run(str(settings.distil_from))
    theirs = run.settings
    check_same_classes(splits.classes, "this one", run.classes, str(run.path))
    if len(theirs.mean) != len(settings.mean):
        raise UserError(
            f"expected a teacher of images with {len(settings.mean)} channels; {run.path} takes {len(theirs.mean)}"
        )
    _check_images(run, splits)
    best = run.best()
    record = TeacherRecord(str(run.path.resolve()), best.name, sha256_of_tensors(best))
    if TEACHER.exists(out) and (begun := TEACHER.read(out)).sha256 != record.sha256:
        raise UserError(
            f"expected the teacher that {out} was begun with, {begun.checkpoint} of {begun.run}; {best} has other "
            "weights"
        )
    network = run.model(device)
    mine, its = (View(each.input_shape[1:], tuple(each.mean), tuple(each.std)) for each in (settings, theirs))
    example = torch.empty(1, *settings.input_shape)
    seen = Seen(its, mine, example, next(network.parameters()))
    return Teacher(record, lambda images: network.forward_last(seen(images)))


def _check_images(run: Run, splits: Splits) -> None:
    """Raise UserError if a teacher knows images that its student is judged on, or the other way round."""
    if run.data == splits.summary():
        return
    try:
        theirs = run.look_up_splits()
    except UserError as error:
        raise UserError(
            f"expected to find which images {run.path} was trained on, to tell them from these; {error}"
        ) from error
    for held_out in (splits.calibration, splits.test):
        if known := theirs.train.shared_with(held_out):
            raise UserError(
                f"expected a teacher that knows none of the images held out here; {run.path} was trained on {known} of "
                f"{len(held_out)} (the same split_seed and fractions divide alike)"
            )
    if known := splits.train.shared_with(theirs.test):
        raise UserError(
            f"expected a teacher whose test images are not trained on here; {known} of {len(theirs.test)} of "
            f"{run.path} are (the same split_seed and fractions divide alike)"
        )
