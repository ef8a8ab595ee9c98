"""Test results of a run or a network: its calibration, every exit alone, and a range of budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exitwise.data import Splits
from exitwise.data.fingerprints import unused
from exitwise.data.loaders import pairs_of
from exitwise.deploy.anew import standard_of, yardstick_of
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.groups import Groups
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.exiting.outcome import Outcome
from exitwise.exiting.outputs import Outputs, anytime, operate
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.scores import Scores, among_top
from exitwise.exiting.table import budget_table
from exitwise.kernels.inputs import noun_of
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.reporting.figures import accuracy_against_macs
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.evaluation import EVALUATION, BudgetPoint, Evaluation
from exitwise.storage.files import store, warn_of
from exitwise.workflows.arguments import check_network_call, check_no_place, check_run_call
from exitwise.workflows.held_out import class_numbers, groups_in, groups_in_order


def evaluate(
    run: str | Path | StagedModel,
    calibration: Calibration | str | None = None,
    test: Iterable[Any] | None = None,
    *,
    data: str | Path | None = None,
    groups: Groups | Sequence[str] | None = None,
    device: str = "auto",
    splits: Splits | None = None,
) -> Evaluation:
    """Measure accuracy and cost on test samples: of each exit alone, as calibrated, and at a range of budgets.

    Everything is read by the measure, the temperatures and the kind of thresholds of the calibration.

    Args:
        run: a run folder, whose test split is read, and whose evaluation.json and figure are written; or a network.
        calibration: of a network; of a run the name of one that it keeps.
        test: of a network, batches that it has not seen, as (inputs, targets, ...) or mappings with an image and a
            label.
        data: of a run: where its images lie now, if they have moved.
        groups: of the test images, as for :func:`exitwise.calibrate`; without them those of a run with long-tailed
            training images are classes with many, medium and few of these (a third of the classes each).
        device: where to run a run's network; a network itself is used where it lies.
        splits: the run's data, where it is loaded already.

    Raises:
        ValueError: for a network without calibration or test samples, or a run with, or unsuitable samples.
    """
    if isinstance(run, nn.Module):
        check_no_place(data)
        check_network_call(run, calibration, test, "evaluated by evaluate(network, calibration, test)")
        assert isinstance(calibration, Calibration)
        assert test is not None
        return _of_network(run, calibration, test, groups)
    check_run_call(run, calibration, test)
    assert not isinstance(calibration, Calibration)
    return _of_run(Run(run).under(calibration).at(data), device, splits, groups)


def _of_network(
    model: StagedModel, calibration: Calibration, test: Iterable[Any], groups: Groups | Sequence[str] | None
) -> Evaluation:
    calibration.check_network(model)
    device = next(model.parameters()).device
    used = {"fitted on": model.fitted_on, "calibrated on": calibration.samples}
    batches = unused(pairs_of(test, model, "test loader"), used, "test loader")
    logits, targets = collect_logits(model, batches, device)
    tested = Recorded(logits, targets, class_numbers(model), groups=groups_in_order(groups, len(targets)))
    found = _evaluated(calibration, tested, calibration.exit_macs, model.full_macs)
    return replace(found, noun=noun_of(model.example))


def _of_run(run: Run, device: str, splits: Splits | None, groups: Groups | Sequence[str] | None) -> Evaluation:
    place, writable = pick_device(device), warn_of(run.path)
    model = run.model(place)
    splits = splits or run.splits()
    groups_in(groups, splits.test)
    costs, workers = count_cost(model).macs, run.settings.workers
    calibrated = run.read_calibration(model) if run.is_calibrated or run.name is not None else None
    calibration = calibrated
    if calibration is None or not calibration.table:
        held_out = collect_logits(model, splits.calibration.batches(EVALUATION_BATCH, workers), place)
        calibration = _with_table(
            calibration or Calibration.of(ExitPolicy([None] * (model.exits - 1)), costs), *held_out
        )
    logits, targets = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    parts = groups_in(groups, splits.test)
    if parts is None and run.settings.imbalance < 1:
        parts = by_frequency(splits.train.targets.numpy(), targets)
    tested = Recorded(logits, targets, run.classes, groups=parts)
    found = replace(_evaluated(calibration, tested, costs, model.full_macs), noun=run.settings.noun)
    if calibrated is None:
        found = replace(found, calibrated=None, answers=(), intro="", outcome=None, scores=None)
    evaluation = replace(found, checkpoint=run.best().name, left_out=len(splits.test) - len(targets))
    if writable and store(partial(_write, run, evaluation), run.path):
        return replace(evaluation, stored=EVALUATION.called(run.name).path(run.path))
    return evaluation


def by_frequency(trained: NDArray[np.int64], targets: NDArray[np.int64]) -> list[str]:
    """Return which third of the classes each sample is of, many, medium or few, by their counts in training.

    The first thirds have the class more, where they cannot be equal.

    Args:
        trained: class index of each training sample.
        targets: of the samples.
    """
    counts = np.bincount(trained, minlength=int(targets.max()) + 1)
    thirds = np.array_split(np.argsort(-counts, kind="stable"), 3)
    names = {int(each): name for name, third in zip(("many", "medium", "few"), thirds, strict=True) for each in third}
    return [names[int(target)] for target in targets]


def _write(run: Run, evaluation: Evaluation) -> None:
    run.write_evaluation(evaluation)
    results = {run.settings.method: [(evaluation.budgets, evaluation.anytime)]}
    (run.path / "figures").mkdir(exist_ok=True)
    figure = run.path / "figures" / f"accuracy_against_macs{'' if run.name is None else f'-{run.name}'}.png"
    accuracy_against_macs(results, evaluation.exit_macs, evaluation.noun).savefig(figure, dpi=150)


def _with_table(calibration: Calibration, logits: NDArray[Any], targets: NDArray[np.int64]) -> Calibration:
    """Return a calibration that has none with a table of its measure's thresholds."""
    measure, costs = calibration.policy.measure, calibration.exit_macs
    outputs = Outputs.from_logits(logits, targets, measure)
    table = budget_table(
        outputs.confidences, outputs.correct, costs, family=measure.family, full_macs=calibration.full_macs
    )
    return replace(calibration, table=table)


def _evaluated(calibration: Calibration, tested: Recorded, costs: tuple[int, ...], full_macs: int) -> Evaluation:
    """Return what a calibration does on test samples."""
    tested.check_finite()
    logits, targets, classes, groups = tested.logits, tested.targets, tested.classes, tested.groups
    policy, own = calibration.policy, logits.argmax(-1)
    outputs, alone = Outputs.from_logits(logits, targets, policy.measure), Outputs.from_logits(logits, targets)
    policies = {line.budget: ExitPolicy(line.thresholds, policy.measure) for line in calibration.table}
    yardstick, standard = yardstick_of(calibration), standard_of(calibration, logits)
    return Evaluation(
        None,
        costs,
        anytime(alone),
        tuple(BudgetPoint(budget, each, operate(outputs, each, costs)) for budget, each in policies.items()),
        operate(outputs, policy, costs),
        len(targets),
        0,
        tuple(anytime(outputs)) if policy.measure.mixes(logits[:1, 0]) else (),
        full_macs,
        calibration.intro,
        Outcome.of(
            outputs.under(policy),
            targets,
            own,
            standard,
            yardstick,
            classes,
            groups,
            tolerance=calibration.tolerance,
            exit_costs=costs,
        ),
        *_scores(logits, outputs, policy, len(classes)),
    )


def _scores(
    logits: NDArray[Any], outputs: Outputs, policy: ExitPolicy, classes: int
) -> tuple[tuple[Scores, ...], Scores]:
    """Return the scores of each exit alone and of a policy; of one whose measure mixes exits without the likeliest."""
    targets, own, found = outputs.targets, logits.argmax(-1), among_top(logits, outputs.targets)
    left = outputs.under(policy)
    tops = [None] * logits.shape[1] if found is None else found.mean(axis=0).tolist()
    exits = tuple(Scores.of(own[:, k], targets, classes, top) for k, top in enumerate(tops))
    top = None
    if found is not None and not policy.measure.mixes(logits[:1, 0]):
        top = float(np.take_along_axis(found, left.exits[:, None], axis=1).mean())
    return exits, Scores.of(left.predictions, targets, classes, top)
