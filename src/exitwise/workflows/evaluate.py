"""Test results of a run: every exit alone, 39 budgets, and the run's own calibration."""

from __future__ import annotations

from pathlib import Path

from exitwise.data import Splits
from exitwise.evaluation.collect import collect
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, anytime, budgeted_curve, collect_logits, operate
from exitwise.models import count_cost
from exitwise.reporting.figures import accuracy_against_macs
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.evaluation import Evaluation


def evaluate(path: str | Path, device: str = "auto", *, splits: Splits | None = None) -> Evaluation:
    """Read the test split, once, and record anytime and budgeted results in evaluation.json and a figure.

    ``splits`` is the run's data, where it is loaded already.
    """
    run = Run(path)
    place = pick_device(device)
    model = run.model(place)
    splits = splits or run.splits()
    costs = count_cost(model).macs
    workers = run.settings.workers
    logits, targets = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    test = Outputs.from_logits(logits, targets)
    curve = budgeted_curve(collect(model, splits.calibration, place, workers), test, costs)
    calibrated = None
    if run.is_calibrated:
        policy = run.read_calibration().policy
        calibrated = operate(Outputs.from_logits(logits, targets, policy.measure), policy, costs)
    left_out = len(splits.test) - len(targets)
    evaluation = Evaluation(run.best().name, costs, anytime(test), curve, calibrated, len(targets), left_out)
    run.write_evaluation(evaluation)
    figure = accuracy_against_macs({run.settings.method: [(curve, evaluation.anytime)]}, costs)
    (run.path / "figures").mkdir(exist_ok=True)
    figure.savefig(run.path / "figures" / "accuracy_against_macs.png", dpi=150)
    return evaluation
