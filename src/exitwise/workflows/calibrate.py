"""Thresholds of a run: from a wish, on held-out images, to calibration.json."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from exitwise.benching.timing import measure_exit_seconds
from exitwise.budgets import check_count
from exitwise.data import Splits
from exitwise.deploy.asked import Asked, Wishes
from exitwise.deploy.calibrating import Costs, Recorded, calibrated, drift_of, warn_if_few
from exitwise.deploy.calibration import CALIBRATION, Calibration
from exitwise.deploy.groups import Groups
from exitwise.deploy.monitor import DriftWarning
from exitwise.errors import UserError
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run
from exitwise.storage.files import why_not_written
from exitwise.workflows.held_out import exits_of, held_out_of, is_cascade


def calibrate(
    run: str | Path | StagedModel,
    held_out: Iterable[Any] | None = None,
    *,
    data: str | Path | None = None,
    groups: Groups | Sequence[str] | None = None,
    name: str | None = None,
    device: str = "auto",
    splits: Splits | None = None,
    **asked: Unpack[Wishes],
) -> Calibration:
    """Find thresholds for one wish on held-out samples.

    Args:
        run: a run folder, whose calibration split is used and whose calibration.json is written, unless it was to be a
            guarantee and nothing could be guaranteed; or a network.
        held_out: of a network, batches that it was neither trained on nor will be tested on, as (inputs, targets, ...)
            or mappings with an image and a label.
        data: of a run: where its images lie now, if they have moved, which is known by what they are; or other images,
            in a folder per class: a warning says how they differ from those that it was calibrated on.
        groups: of the images, such as sites or cameras, for each of which it says what is lost: a CSV file with the
            columns image and group, or a mapping; images by their paths or the ends of them. Of a network's held-out
            samples: one each, in order.
        name: of a run: what to call the calibration, which is kept beside others; other calls take it by this name.
        device: where to run a run's network; a network itself is used where it lies.
        splits: the run's data, where it is loaded already.
        asked: the wish, and how it is to be met, by name: see :class:`~exitwise.Wishes`.

    Raises:
        ValueError: for a network without held-out samples, or a run with; unless exactly one wish is given and within
            reach; or for unsuitable samples.
    """
    wished = Asked.of(asked, math.inf if is_cascade(run) else 1)
    check_count("exit proportions", wished.wish.get("proportions"), exits_of(run))
    if name is not None and isinstance(run, nn.Module):
        raise UserError(f"a name is for a calibration that a run keeps; got {name} with a network")
    CALIBRATION.called(name)
    found = held_out_of(run, held_out, device, splits, data, groups)
    model = found.model
    folder = None if found.folder is None else found.folder.under(name)
    former = next((each for each in (folder, found.folder) if each is not None and each.is_calibrated), None)
    if folder is not None and (why := why_not_written(folder.path)) is not None:
        raise UserError(f"thresholds are stored in {folder.path}, which cannot be written to ({why})")
    if found.origin and found.origin.data and former and (drift := _drift(former, model, found.recorded)):
        warnings.warn(drift, DriftWarning, stacklevel=2)
    seconds = measure_exit_seconds(model) if "latency" in wished.wish else None
    costs = Costs(count_cost(model).macs, model.full_macs, seconds)
    calibration = replace(
        calibrated(wished, found.recorded, costs, network=model.fingerprint),
        checkpoint=found.checkpoint,
        samples=found.samples,
    )
    if folder is not None and calibration.is_kept_promise:
        folder.write_calibration(calibration)
    warn_if_few(len(found.targets), found.recorded.noun)
    return calibration


def _drift(former: Run, model: StagedModel, held: Recorded) -> str | None:
    """Return how samples differ from those of a run's calibration until now; nothing where that is damaged, or of other
    weights, and is replaced."""
    try:
        return drift_of(former.read_calibration(model), held)
    except UserError:
        return None
