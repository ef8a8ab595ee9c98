"""calibration.json: the exit policy of a run, what it was found for, and what it does on the calibration images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exitwise.deploy.monitor import Reference
from exitwise.exiting.confidence import Confidence
from exitwise.exiting.policy import ExitPolicy
from exitwise.runs.records.record import Record


@dataclass(frozen=True)
class Calibration:
    """A calibrated exit policy and what it was calibrated for.

    Attributes:
        policy: the thresholds.
        budget: what was asked for, such as ``{"macs": 2e7}`` or ``{"p": 0.75}``.
        proportions: the exit proportions that the thresholds were found for.
        exit_macs: cost of leaving at each exit.
        expected: accuracy, macs and shares on the calibration split.
        checkpoint: name of the checkpoint whose outputs were calibrated.
        exit_seconds: measured time to leave at each exit, if the budget was a latency.
        guarantee: what holds with which probability, if one was asked for.
        reference: how the calibration images left, to compare others with.
    """

    policy: ExitPolicy
    budget: dict[str, Any]
    proportions: tuple[float, ...]
    exit_macs: tuple[int, ...]
    expected: dict[str, Any]
    checkpoint: str
    exit_seconds: tuple[float, ...] | None = None
    guarantee: dict[str, Any] | None = None
    reference: Reference | None = None


def _encode(calibration: Calibration) -> dict[str, Any]:
    return {
        "budget": calibration.budget,
        "thresholds": list(calibration.policy.thresholds),
        "measure": calibration.policy.confidence.measure,
        "temperatures": calibration.policy.confidence.temperatures,
        "proportions": list(calibration.proportions),
        "exit_macs": list(calibration.exit_macs),
        "calibration": calibration.expected,
        "checkpoint": calibration.checkpoint,
        "exit_seconds": calibration.exit_seconds,
        "guarantee": calibration.guarantee,
        "reference": calibration.reference and calibration.reference.to_dict(),
    }


def _decode(content: dict[str, Any], version: int) -> Calibration:
    temperatures = content["temperatures"]
    reading = Confidence(content["measure"], None if temperatures is None else tuple(map(float, temperatures)))
    return Calibration(
        ExitPolicy([None if t is None else float(t) for t in content["thresholds"]], reading),
        content["budget"],
        tuple(content["proportions"]),
        tuple(content["exit_macs"]),
        content["calibration"],
        content["checkpoint"],
        content["exit_seconds"],
        content["guarantee"],
        Reference.from_dict(content["reference"]) if content.get("reference") else None,
    )


CALIBRATION = Record("calibration.json", "exitwise/calibration", _encode, _decode, expected="thresholds of exits")
