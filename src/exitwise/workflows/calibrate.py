"""Thresholds of a run: from a wish, on held-out images, to calibration.json."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exitwise.benching.timing import measure_exit_seconds
from exitwise.budgets import check_count, check_proportions, exit_proportions
from exitwise.catalogue.measures import USUAL_MEASURE, MeasureName
from exitwise.data import Splits
from exitwise.data.fingerprints import noted, unused
from exitwise.data.loaders import pairs_of
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import Reference
from exitwise.errors import DataError, ExitwiseWarning, UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, anytime, collect_logits, operate
from exitwise.exiting.calibration import calibrate_accuracy, calibrate_macs, calibrate_proportions
from exitwise.exiting.measures import create_measure
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.risk import Risk, control_risk, design_and_test
from exitwise.exiting.search import ThresholdSearch
from exitwise.exiting.table import budget_table
from exitwise.exiting.temperatures import bound_of, fit_temperatures
from exitwise.exiting.wish import check_wish
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel, check_staged
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run

FEW = 100
"""Calibration images, below which chance moves shares and accuracy by ten points."""


class CalibrationWarning(ExitwiseWarning):
    """Calibration images, or the network's confidences on them, that thresholds are not to be built on."""


class _HeldOut(NamedTuple):
    """A network and what its exits said of held-out samples: logits (N, K, C), targets (N).

    ``checkpoint`` is the name of its weights in a run; ``seed`` that of the division for a guarantee; ``samples`` are
    fingerprints of a loader's samples.
    """

    model: StagedModel
    logits: NDArray[Any]
    targets: NDArray[np.int64]
    checkpoint: str
    seed: int
    samples: frozenset[int] = frozenset()


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
    thresholds: Literal["geometric", "searched"] = "geometric",
    measure: MeasureName = USUAL_MEASURE,
    temperature: bool = False,
    device: str = "auto",
    splits: Splits | None = None,
) -> Calibration:
    """Find thresholds for one wish on held-out samples.

    Args:
        run: a run folder, whose calibration split is used and whose calibration.json is written; or a network.
        held_out: of a network, batches that it was neither trained on nor will be tested on, as (inputs, targets, ...)
            or mappings with an image and a label.
        budget: share of the full network's MACs to spend on average.
        macs: mean multiply-accumulates per image.
        latency: mean seconds per image, one by one, as measured here and now with the exits' own cost.
        p: budget parameter of the geometric family.
        proportions: share of images leaving at each exit.
        max_accuracy_drop: how much accuracy may be lost against the full network, in [0, 1], at least cost.
        guarantee: with max_accuracy_drop: the probability with which it is to hold (see :func:`control_risk`).
        risk: what is guaranteed; ``accuracy-drop`` by default.
        thresholds: ``geometric``: of the paper's family; ``searched``: those that do best on the calibration images.
        measure: how confidence is read: a name of the catalogue.
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
    given = check_wish(wishes, guarantee, thresholds, risk)
    folder: Run | None = None
    if isinstance(run, nn.Module):
        check_staged(run)
        check_count("exit proportions", proportions, run.exits)
        found = _of_network(run, held_out)
    else:
        if held_out is not None:
            raise UserError(f"a run has calibration images of its own; got held-out samples too, with {run}")
        folder = Run(run)
        check_count("exit proportions", proportions, folder.settings.exit_count)
        found = _of_run(folder, device, splits)
    model, logits, targets, checkpoint, seed, samples = found
    exit_macs = count_cost(model).macs
    if proportions is not None:
        proportions = check_proportions(proportions, model.exits)
    elif p is not None:
        proportions = exit_proportions(p, model.exits)
    seen: NDArray[Any] | slice = slice(None)
    if guarantee is not None:
        seen, _ = design_and_test(len(targets), seed)  # what tests a guarantee must not have shaped what it tests
    reading = create_measure(measure, _temperatures(logits[seen], targets[seen]) if temperature else None)
    reading = reading.fit(logits[seen], targets[seen], exit_macs)
    outputs = Outputs.from_logits(logits, targets, reading)
    exit_seconds = None if latency is None else measure_exit_seconds(model)
    costs = exit_macs if exit_seconds is None else exit_seconds
    target = budget * exit_macs[-1] if budget is not None else macs
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
        risk = risk or "accuracy-drop"
        result = control_risk(*outputs, max_accuracy_drop, guarantee, risk=risk, seed=seed)
        policy, proportions = result.policy, result.proportions
        promise = {
            "risk": risk,
            "probability": guarantee,
            "holds": result.holds,
            "tested": result.tested,
            "mean_loss": result.mean_loss,
        }
    else:
        policy, proportions = _spend(outputs, costs, target, max_accuracy_drop, searched=thresholds == "searched")
    point, left = operate(outputs, policy, exit_macs), outputs.under(policy)
    calibration = Calibration(
        policy.read_by(reading),
        given,
        tuple(point.shares if thresholds == "searched" else proportions),
        exit_macs,
        point._asdict(),
        checkpoint,
        exit_seconds,
        promise,
        Reference.of(left.exits, left.confidences, model.exits, policy.thresholds),
        budget_table(outputs.confidences, outputs.correct, exit_macs, searched=thresholds == "searched"),
        samples,
    )
    if folder is not None:
        folder.write_calibration(calibration)
    if len(targets) < FEW:
        points = round(98 / len(targets) ** 0.5)
        warnings.warn(
            f"{len(targets)} calibration images are few: shares and accuracies may be {points} points off by chance",
            CalibrationWarning,
            stacklevel=2,
        )
    return calibration


def _of_run(run: Run, device: str, splits: Splits | None) -> _HeldOut:
    place = pick_device(device)
    model = run.model(place)
    split = (splits or run.splits()).calibration
    _check_held_out(split.targets.numpy(), run.classes, model.exits)
    logits, targets = collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), place)
    return _HeldOut(model, logits, targets, run.best().name, run.settings.split_seed)


def _of_network(model: StagedModel, held_out: Iterable[Any] | None) -> _HeldOut:
    if held_out is None:
        raise UserError("a network is calibrated on held-out samples; got none (the second argument)")
    device = next(model.parameters()).device
    samples: set[int] = set()
    name = "held-out loader"
    batches = noted(unused(pairs_of(held_out, model, name), {"fitted on": model.fitted_on}, name), samples)
    logits, targets = collect_logits(model, batches, device)
    _check_held_out(targets, [str(label) for label in range(model.num_classes)], model.exits)
    return _HeldOut(model, logits, targets, "", 0, frozenset(samples))


def _temperatures(logits: NDArray[Any], targets: NDArray[Any]) -> tuple[float, ...]:
    """Return a temperature per exit; warns of those that only the bounds of the search stopped."""
    temperatures = fit_temperatures(logits, targets)
    for k, temperature in enumerate(temperatures):
        if (bound := bound_of(temperature)) is not None:
            warnings.warn(
                f"the temperature of exit {k + 1} is at its bound {bound:g}: its confidences say little",
                CalibrationWarning,
                stacklevel=3,
            )
    return temperatures


def _spend(
    outputs: Outputs, costs: Sequence[float], target: float | None, max_drop: float | None, searched: bool
) -> tuple[ExitPolicy, Sequence[float]]:
    """Thresholds that spend at most ``target`` per image, or as little as loses at most ``max_drop`` of accuracy, and
    the proportions of the geometric family that they are or start from."""
    if max_drop is not None:
        policy, proportions = calibrate_accuracy(outputs.confidences, outputs.correct, costs, max_drop)
        if searched:
            search = ThresholdSearch(outputs.confidences, outputs.correct, costs)
            policy = search.least_cost(anytime(outputs)[-1] - max_drop, policy)
        return policy, proportions
    assert target is not None
    policy, proportions = calibrate_macs(outputs.confidences, costs, target)
    if searched:
        policy = ThresholdSearch(outputs.confidences, outputs.correct, costs).best_accuracy(target, policy)
    return policy, proportions


def _check_latency(latency: float, costs: Sequence[float]) -> None:
    if not costs[0] <= latency <= costs[-1]:
        raise UserError(
            "a latency must lie between that of leaving at the first exit and the full network's, here "
            f"{1000 * costs[0]:.3g} to {1000 * costs[-1]:.3g} ms; got {1000 * latency:.3g} ms"
        )


def _check_held_out(targets: NDArray[np.int64], classes: Sequence[str], exits: int) -> None:
    """Raise DataError unless there are enough samples of every class."""
    if len(targets) < exits:
        raise DataError(f"calibration needs at least {exits} images, one per exit; got {len(targets)}")
    counts = np.bincount(targets, minlength=len(classes)).tolist()
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise DataError(f"calibration needs images of every class; there is none of {missing[0]!r}")
