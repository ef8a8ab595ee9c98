"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from exitwise.reporting.units import macs, percent, shares

if TYPE_CHECKING:
    from exitwise.deploy.onnx_runner import Prediction
    from exitwise.evaluation.outputs import OperatingPoint
    from exitwise.runs.records.evaluation import Evaluation
    from exitwise.workflows.train import TrainingResult


def exits_table(result: TrainingResult) -> Table:
    """Accuracy of each exit after training, on the calibration split."""
    last = result.history[-1]
    table = Table(title="Last epoch, calibration images")
    accuracies = {key: value for key, value in last.items() if key.startswith("calibration_accuracy_")}
    for number, _ in enumerate(accuracies, start=1):
        table.add_column(f"exit {number}", justify="right")
    table.add_row(*(percent(value) for value in accuracies.values()))
    return table


def point_rows(point: OperatingPoint, full_macs: float) -> list[tuple[str, str]]:
    """Name and figure of an operating point."""
    return [
        ("accuracy", percent(point.accuracy)),
        ("mean MACs", f"{macs(point.macs)} ({percent(point.macs / full_macs)} of full)"),
        ("leaving at each exit", shares(point.shares)),
    ]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Anytime results, and a few budgets of the curve, on the test split."""
    full = evaluation.exit_macs[-1]
    table = Table(title="Test images")
    for name in ("setting", "accuracy", "MACs", "of full", "leaving at each exit"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for number, (accuracy, cost) in enumerate(zip(evaluation.anytime, evaluation.exit_macs, strict=True), start=1):
        table.add_row(f"all at exit {number}", percent(accuracy), macs(cost), percent(cost / full), "")
    table.add_section()
    for point in evaluation.curve[4::5]:
        table.add_row(f"p = {point.p:g}", *_point(point.test, full))
    if evaluation.calibrated is not None:
        table.add_section()
        table.add_row("as calibrated", *_point(evaluation.calibrated, full))
    return table


def _point(point: OperatingPoint, full: float) -> tuple[str, str, str, str]:
    return percent(point.accuracy), macs(point.macs), percent(point.macs / full), shares(point.shares)


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """One row per image."""
    table = Table()
    for name in ("file", "class", "confidence", "exit", "compute"):
        table.add_column(name, justify="left" if name in ("file", "class") else "right", overflow="fold")
    for each in predictions:
        table.add_row(each.file, each.prediction, f"{each.confidence:.3f}", str(each.exit), percent(each.compute))
    return table
