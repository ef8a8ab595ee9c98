"""Thresholds of a run: from a wish, on held-out images, to calibration.json."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exitwise.benching.timing import measure_exit_seconds
from exitwise.budgets import check_count
from exitwise.catalogue.measures import USUAL_MEASURE, MeasureName
from exitwise.data import Splits
from exitwise.deploy.calibrating import Asked, Costs, Thresholding, calibrated, drift_of, warn_if_few
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import DriftWarning
from exitwise.exiting.risk import Risk
from exitwise.exiting.wish import DropFrom, check_wish
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.workflows.held_out import exits_of, held_out_of, is_cascade


def calibrate(
    run: str | Path | StagedModel,
    held_out: Iterable[Any] | None = None,
    *,
    budget: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    p: float | None = None,
    proportions: Sequence[float] | None = None,
    max_accuracy_drop: float | None = None,
    guarantee: float | None = None,
    risk: Risk | None = None,
    drop_from: DropFrom = "best",
    thresholds: Thresholding | None = None,
    measure: MeasureName = USUAL_MEASURE,
    temperature: bool = False,
    data: str | Path | None = None,
    device: str = "auto",
    splits: Splits | None = None,
) -> Calibration:
    """Find thresholds for one wish on held-out samples.

    Args:
        run: a run folder, whose calibration split is used and whose calibration.json is written, unless it was to be a
            guarantee and nothing could be guaranteed; or a network.
        held_out: of a network, batches that it was neither trained on nor will be tested on, as (inputs, targets, ...)
            or mappings with an image and a label.
        budget: share of the full network's MACs to spend on average; of a cascade, of its last network's alone.
        macs: mean multiply-accumulates per image.
        latency: mean seconds per image, one by one, as measured here and now with the exits' own cost.
        p: budget parameter of the geometric family.
        proportions: share of images leaving at each exit.
        max_accuracy_drop: how much accuracy may be lost, in [0, 1], at least cost. The loss on the held-out samples is
            kept one standard error below that: of many thresholds that seem to keep a wish the cheapest is mostly a
            lucky one.
        guarantee: with max_accuracy_drop: the probability with which it is to hold (see :func:`control_risk`).
        risk: what is guaranteed; ``accuracy-drop`` by default.
        drop_from: what a loss is counted from: ``full``, the full network, or ``best``: where an earlier exit alone, or
            the measure's answer at one, is more accurate on the held-out samples, the best of them.
        thresholds: ``geometric``: of the paper's family; ``same``: one for all exits; ``searched``: those that do best
            on the calibration images; None: the measure's own family.
        measure: how confidence is read, and the answer: a name of the catalogue. One that is fitted is fitted on all
            held-out samples, and thresholds are found on what it says of each when fitted without it.
        temperature: whether to fit a temperature per exit first.
        data: of a run, other images than its own, in a folder per class; a warning says how they differ from those that
            it was calibrated on.
        device: where to run a run's network; a network itself is used where it lies.
        splits: the run's data, where it is loaded already.

    Raises:
        ValueError: for a network without held-out samples, or a run with; unless exactly one wish is given and within
            reach; or for unsuitable samples.
    """
    wishes = {
        "budget": budget,
        "macs": macs,
        "latency": latency,
        "p": p,
        "proportions": proportions,
        "max_accuracy_drop": max_accuracy_drop,
    }
    most = math.inf if is_cascade(run) else 1
    given = check_wish(wishes, guarantee, thresholds, risk, drop_from, most)
    check_count("exit proportions", proportions, exits_of(run))
    found = held_out_of(run, held_out, device, splits, data)
    model = found.model
    former = found.folder if found.folder is not None and found.folder.is_calibrated else None
    if data is not None and former and (drift := drift_of(former.read_calibration(model), found.recorded)):
        warnings.warn(drift, DriftWarning, stacklevel=2)
    seconds = None if latency is None else measure_exit_seconds(model)
    costs = Costs(count_cost(model).macs, model.full_macs, seconds)
    asked = Asked(given, guarantee, risk, drop_from, thresholds, measure, temperature)
    calibration = replace(
        calibrated(asked, found.recorded, costs, network=model.fingerprint),
        checkpoint=found.checkpoint,
        samples=found.samples,
    )
    if found.folder is not None and calibration.is_kept_promise:
        found.folder.write_calibration(calibration)
    warn_if_few(len(found.targets))
    return calibration
