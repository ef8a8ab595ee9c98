"""Test results of a run: every exit alone, 39 budgets, and the run's own calibration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from exitwise.data import Splits
from exitwise.data.fingerprints import unused
from exitwise.data.loaders import pairs_of
from exitwise.deploy.calibration import Calibration
from exitwise.evaluation.collect import collect
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, anytime, budgeted_curve, collect_logits, operate
from exitwise.exiting.policy import ExitPolicy
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.reporting.figures import accuracy_against_macs
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.evaluation import BudgetPoint, Evaluation
from exitwise.workflows.arguments import check_network_call, check_run_call


def evaluate(
    run: str | Path | StagedModel,
    calibration: Calibration | None = None,
    test: Iterable[Any] | None = None,
    *,
    device: str = "auto",
    splits: Splits | None = None,
) -> Evaluation:
    """Measure accuracy and cost on test samples: of each exit alone, as calibrated, and at a range of budgets.

    Args:
        run: a run folder, whose test split is read, whose 39 budgets are measured too, and whose evaluation.json and
            figure are written; or a network.
        calibration: of a network.
        test: of a network, batches that it has not seen, as (inputs, targets, ...) or mappings with an image and a
            label.
        device: where to run a run's network; a network itself is used where it lies.
        splits: the run's data, where it is loaded already.

    Raises:
        ValueError: for a network without calibration or test samples, or a run with, or unsuitable samples.
    """
    if isinstance(run, nn.Module):
        check_network_call(run, calibration, test, "evaluated by evaluate(network, calibration, test)")
        assert calibration is not None
        assert test is not None
        return _of_network(run, calibration, test)
    check_run_call(run, calibration, test)
    return _of_run(Run(run), device, splits)


def _of_network(model: StagedModel, calibration: Calibration, test: Iterable[Any]) -> Evaluation:
    calibration.check_network(model)
    costs, policy = calibration.exit_macs, calibration.policy
    device = next(model.parameters()).device
    used = {"fitted on": model.fitted_on, "calibrated on": calibration.samples}
    batches = unused(pairs_of(test, model, "test loader"), used, "test loader")
    logits, targets = collect_logits(model, batches, device)
    outputs = Outputs.from_logits(logits, targets, policy.measure)
    calibrated = operate(outputs, policy, costs)
    policies = {line.budget: ExitPolicy(line.thresholds, policy.measure) for line in calibration.table}
    budgets = tuple(BudgetPoint(budget, each, operate(outputs, each, costs)) for budget, each in policies.items())
    alone, full = Outputs.from_logits(logits, targets), model.full_macs
    answers = tuple(anytime(outputs)) if policy.measure.mixes(logits[:1, 0]) else ()
    return Evaluation(None, costs, anytime(alone), [], calibrated, len(targets), 0, budgets, answers, full)


def _of_run(run: Run, device: str, splits: Splits | None) -> Evaluation:
    place = pick_device(device)
    model = run.model(place)
    splits = splits or run.splits()
    costs = count_cost(model).macs
    workers = run.settings.workers
    logits, targets = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    test = Outputs.from_logits(logits, targets)
    curve = budgeted_curve(collect(model, splits.calibration, place, workers), test, costs)
    calibrated, answers = None, tuple[float, ...]()
    if run.is_calibrated:
        policy = run.read_calibration(model).policy
        outputs = Outputs.from_logits(logits, targets, policy.measure)
        calibrated = operate(outputs, policy, costs)
        answers = tuple(anytime(outputs)) if policy.measure.mixes(logits[:1, 0]) else ()
    evaluation = Evaluation(
        run.best().name,
        costs,
        anytime(test),
        curve,
        calibrated,
        len(targets),
        len(splits.test) - len(targets),
        answers=answers,
        full_macs=model.full_macs,
    )
    run.write_evaluation(evaluation)
    figure = accuracy_against_macs({run.settings.method: [(curve, evaluation.anytime)]}, costs)
    (run.path / "figures").mkdir(exist_ok=True)
    figure.savefig(run.path / "figures" / "accuracy_against_macs.png", dpi=150)
    return evaluation
