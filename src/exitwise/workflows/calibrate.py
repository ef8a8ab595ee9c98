"""Thresholds of a run: from a wish, on held-out images, to calibration.json."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exitwise.benching.timing import measure_exit_seconds
from exitwise.budgets import check_budget, check_count, check_proportions, exit_proportions
from exitwise.catalogue.measures import USUAL_MEASURE, MeasureName
from exitwise.data import Splits
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.evaluation.outputs import Outputs, operate
from exitwise.exiting.calibration import (
    MARGIN,
    calibrate_accuracy,
    calibrate_macs,
    calibrate_proportions,
    loss_of,
)
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.measures import Measure
from exitwise.exiting.outcome import Outcome, Yardstick, best_yardstick
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.risk import Risk, control_risk, design_and_test, least_samples
from exitwise.exiting.rule import Family
from exitwise.exiting.search import ThresholdSearch
from exitwise.exiting.table import budget_table
from exitwise.exiting.temperatures import bound_of
from exitwise.exiting.wish import DropFrom, check_wish, missed
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run
from exitwise.workflows.held_out import CalibrationWarning, exits_of, held_out_of, is_cascade, warn_if_few


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
    thresholds: Literal["geometric", "same", "searched"] | None = None,
    measure: MeasureName = USUAL_MEASURE,
    temperature: bool = False,
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
    model, logits, targets, checkpoint, seed, samples, folder = held_out_of(run, held_out, device, splits)
    exit_macs, full_macs = count_cost(model).macs, model.full_macs
    if proportions is not None:
        proportions = check_proportions(proportions, model.exits)
    elif p is not None:
        proportions = exit_proportions(p, model.exits)
    # What tests a guarantee must not have shaped what it tests.
    seen = None
    if guarantee is not None and max_accuracy_drop is not None and model.exits > 1:
        risk = risk or "accuracy-drop"
        _check_enough(len(targets), max_accuracy_drop, guarantee, risk)
        seen = design_and_test(len(targets), seed)[0]
    fitted = fit_and_read(measure, logits, targets, exit_macs, temperature=temperature, on=seen, seed=seed)
    reading, outputs = fitted.measure, Outputs(fitted.confidences, fitted.predictions, targets)
    _warn_of_bounds(reading)
    own = logits.argmax(-1)
    yardstick = Yardstick(model.exits - 1)
    if drop_from == "best" and risk != "disagreement":
        chosen_on = slice(None) if seen is None else seen
        yardstick = best_yardstick(own[chosen_on], outputs.predictions[chosen_on], targets[chosen_on])
    standard = yardstick.answers(own, outputs.predictions)
    family: Family = "same" if thresholds == "same" else "geometric"
    if thresholds is None and p is None and proportions is None:
        family = reading.family
    searched = thresholds == "searched"
    exit_seconds = None if latency is None else measure_exit_seconds(model)
    costs = exit_macs if exit_seconds is None else exit_seconds
    target = budget * full_macs if budget is not None else macs
    if target is not None and model.exits > 1:
        check_budget(target, exit_macs, full_macs)
    if latency is not None and model.exits > 1:
        _check_latency(latency, costs)
        target = latency
    promise = None
    if model.exits == 1:
        warnings.warn("the network has one exit: there is nothing to calibrate", CalibrationWarning, stacklevel=2)
        policy, proportions = ExitPolicy([]), [1.0]
    elif proportions is not None:
        policy = calibrate_proportions(outputs.confidences, proportions)
    elif max_accuracy_drop is not None and guarantee is not None:
        assert risk is not None
        result = control_risk(
            *outputs, max_accuracy_drop, guarantee, risk=risk, seed=seed, family=family, full=standard
        )
        policy, proportions = result.policy, result.proportions
        promise = {
            "risk": risk,
            "probability": guarantee,
            "holds": result.holds,
            "tested": result.tested,
            "mean_loss": result.mean_loss,
        }
    else:
        right = standard == targets
        policy, proportions = _spend(outputs, costs, target, max_accuracy_drop, right, family, searched=searched)
    point, left = operate(outputs, policy, exit_macs), outputs.under(policy)
    if not searched and (miss := missed(given, proportions, point, len(targets), full_macs)):
        warnings.warn(miss, CalibrationWarning, stacklevel=2)
    outcome = Outcome.of(left.predictions, targets, own, outputs.predictions, yardstick, class_names(model, folder))
    calibration = Calibration(
        policy.read_by(reading),
        given,
        tuple(point.shares if searched else proportions),
        exit_macs,
        point._asdict(),
        checkpoint,
        exit_seconds,
        promise,
        Reference.of(left.exits, left.confidences, model.exits, policy.thresholds),
        budget_table(
            outputs.confidences, outputs.correct, exit_macs, searched=searched, family=family, full_macs=full_macs
        ),
        samples,
        full_macs,
        model.fingerprint,
        outcome,
    )
    if folder is not None and calibration.is_kept_promise:
        folder.write_calibration(calibration)
    warn_if_few(len(targets))
    return calibration


def _check_enough(samples: int, tolerance: float, guarantee: float, risk: Risk) -> None:
    least = least_samples(tolerance, guarantee, risk)
    if samples < least:
        raise UserError(
            f"expected at least {least} held-out images for a guarantee of {100 * tolerance:g} points with probability "
            f"{guarantee:.12g}, and more where something is lost; got {samples}"
        )


def class_names(model: StagedModel, folder: Run | None) -> list[str]:
    """Return the names of a run's classes, or of a network's by their number."""
    return list(folder.classes) if folder is not None else [str(label) for label in range(model.num_classes)]


def _warn_of_bounds(measure: Measure) -> None:
    """Warn of temperatures that only the bounds of the search stopped."""
    for k, temperature in enumerate(measure.temperatures or ()):
        if (bound := bound_of(temperature)) is not None and not measure.fits_temperatures:
            warnings.warn(
                f"the temperature of exit {k + 1} is at its bound {bound:g}: its confidences say little",
                CalibrationWarning,
                stacklevel=3,
            )


def _spend(
    outputs: Outputs,
    costs: Sequence[float],
    target: float | None,
    max_drop: float | None,
    full: NDArray[np.bool_],
    family: Family,
    searched: bool,
) -> tuple[ExitPolicy, Sequence[float]]:
    """Thresholds that spend at most ``target`` per image, or as little as loses at most ``max_drop`` of the full
    network's accuracy, and the proportions of the family that they are or start from."""
    if max_drop is not None:
        policy, proportions = calibrate_accuracy(
            outputs.confidences, outputs.correct, costs, max_drop, family, full, MARGIN
        )
        if searched:
            search = ThresholdSearch(outputs.confidences, outputs.correct, costs)
            _, error = loss_of(policy.exit_of(outputs.confidences), outputs.correct, full)
            policy = search.least_cost(float(full.mean()) - max_drop + MARGIN * error, policy)
        return policy, proportions
    assert target is not None
    policy, proportions = calibrate_macs(outputs.confidences, costs, target, family)
    if searched:
        policy = ThresholdSearch(outputs.confidences, outputs.correct, costs).best_accuracy(target, policy)
    return policy, proportions


def _check_latency(latency: float, costs: Sequence[float]) -> None:
    if not costs[0] <= latency <= costs[-1]:
        raise UserError(
            "a latency must lie between that of leaving at the first exit and the full network's, here "
            f"{1000 * costs[0]:.3g} to {1000 * costs[-1]:.3g} ms; got {1000 * latency:.3g} ms"
        )
