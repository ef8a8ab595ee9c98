"""evaluation.json: test results of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exitwise.evaluation.outputs import CurvePoint, OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.runs.records.record import Record


@dataclass(frozen=True)
class Evaluation:
    """Test results of a run.

    Attributes:
        checkpoint: name of the checkpoint that was evaluated; None where an old record does not say.
        exit_macs: cost of leaving at each exit.
        anytime: accuracy of each exit on all test images.
        curve: one point per budget parameter p, calibrated on the calibration split.
        calibrated: what the run's own calibration does on the test split; None without one.
        images: number of test images that all this is measured on.
        left_out: number of test images that turned out broken.
    """

    checkpoint: str | None
    exit_macs: tuple[int, ...]
    anytime: list[float]
    curve: list[CurvePoint]
    calibrated: OperatingPoint | None
    images: int
    left_out: int


def _encode(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "checkpoint": evaluation.checkpoint,
        "images": evaluation.images,
        "left_out": evaluation.left_out,
        "exit_macs": list(evaluation.exit_macs),
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
