"""evaluation.json: test results of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from exitwise.evaluation.outputs import CurvePoint
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.shown import Shown, macs, percent, shares
from exitwise.storage.record import Record

if TYPE_CHECKING:
    from rich.console import RenderableType


SHOWN_EVERY = 4
"""Lines of a table of budgets, of which one is printed: each fifth of the full network's cost."""


class BudgetPoint(NamedTuple):
    """A line of a calibration's table on test samples: the share of the full network's MACs that it is for, the policy,
    and what it does."""

    budget: float
    policy: ExitPolicy
    test: OperatingPoint


@dataclass(frozen=True)
class Evaluation(Shown):
    """Test results of a run, or of a network.

    Attributes:
        checkpoint: name of the checkpoint that was evaluated; None where an old record does not say.
        exit_macs: cost of leaving at each exit.
        anytime: accuracy of each exit on all test images.
        curve: one point per budget parameter p, calibrated on the calibration split.
        calibrated: what the run's own calibration does on the test split; None without one.
        images: number of test images that all this is measured on.
        left_out: number of test images that turned out broken.
        budgets: of a network, in place of the curve: each line of its calibration's table; a run's are not written.
        answers: accuracy of the answers at each exit on all test images, where the calibration's measure makes them of
            several exits'; empty where they are the exits' own.
        full_macs: what shares of cost are of; 0: the last exit's.
    """

    checkpoint: str | None
    exit_macs: tuple[int, ...]
    anytime: list[float]
    curve: list[CurvePoint]
    calibrated: OperatingPoint | None
    images: int
    left_out: int
    budgets: tuple[BudgetPoint, ...] = ()
    answers: tuple[float, ...] = ()
    full_macs: int = 0

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        full = self.full_macs or self.exit_macs[-1]
        table = Table(title="Test images")
        for name in ("setting", "accuracy", "MACs", "of full", "leaving at each exit"):
            table.add_column(name, justify="left" if name == "setting" else "right")
        for number, (accuracy, cost) in enumerate(zip(self.anytime, self.exit_macs, strict=True), start=1):
            table.add_row(f"all at exit {number}", percent(accuracy), macs(cost), percent(cost / full), "")
        table.add_section()
        for point in self.curve[4::5]:
            table.add_row(f"p = {point.p:g}", *_row(point.test, full))
        for line in self.budgets[::-SHOWN_EVERY][::-1]:
            table.add_row(f"budget {percent(line.budget)}", *_row(line.test, full))
        if self.calibrated is not None:
            table.add_section()
            for number, (accuracy, cost) in enumerate(zip(self.answers, self.exit_macs, strict=False), start=1):
                name = f"all at exit {number}, as calibrated"
                table.add_row(name, percent(accuracy), macs(cost), percent(cost / full), "")
            table.add_row("as calibrated", *_row(self.calibrated, full))
        return table


def _row(point: OperatingPoint, full: float) -> tuple[str, str, str, str]:
    return percent(point.accuracy), macs(point.macs), percent(point.macs / full), shares(point.shares)


def _encode(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "checkpoint": evaluation.checkpoint,
        "images": evaluation.images,
        "left_out": evaluation.left_out,
        "exit_macs": list(evaluation.exit_macs),
        "full_macs": evaluation.full_macs,
        "anytime": evaluation.anytime,
        "curve": [
            {
                "p": point.p,
                "thresholds": list(point.policy.thresholds),
                "calibration": point.calibration._asdict(),
                "test": point.test._asdict(),
            }
            for point in evaluation.curve
        ],
        "answers": list(evaluation.answers),
        "calibrated": evaluation.calibrated._asdict() if evaluation.calibrated else None,
    }


def _decode(content: dict[str, Any], version: int) -> Evaluation:
    calibrated = content["calibrated"]
    return Evaluation(
        content.get("checkpoint"),
        tuple(content["exit_macs"]),
        list(content["anytime"]),
        [
            CurvePoint(point["p"], ExitPolicy(point["thresholds"]), *map(_point, (point["calibration"], point["test"])))
            for point in content["curve"]
        ],
        None if calibrated is None else _point(calibrated),
        content["images"],
        content["left_out"],
        answers=tuple(content.get("answers", ())),
        full_macs=content.get("full_macs", 0),
    )


def _point(record: dict[str, Any]) -> OperatingPoint:
    return OperatingPoint(record["accuracy"], record["macs"], tuple(record["shares"]))


EVALUATION = Record(
    "evaluation.json",
    "exitwise/evaluation",
    _encode,
    _decode,
    expected="test results",
    again="run `exitwise evaluate {run}`",
)
