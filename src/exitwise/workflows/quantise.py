"""An exported network in eight bits: thresholds anew for the same wish, and what it loses and gains beside float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exitwise.deploy.anew import calibrated_anew, standard_of
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.int8 import Arrays, Int8, Int8Bundle, for_ranges, in_batches
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import new_folder
from exitwise.errors import ExitwiseWarning
from exitwise.evaluation.exported import logits_of
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.outputs import Outputs, operate, right_alone
from exitwise.exiting.point import OperatingPoint
from exitwise.kernels.timing import interleaved_medians
from exitwise.shown import percent

Batches = Callable[[], Iterable[tuple[Arrays, NDArray[np.int64]]]]
"""Held-out batches, anew at each call: arrays of inputs by name, and targets."""

LOSS, ROUNDS, TIMED = 0.01, 5, 32
"""Accuracy that a network in eight bits may lose without a word; rounds and samples of its times."""


class QuantisationWarning(ExitwiseWarning):
    """A network in eight bits loses accuracy."""


@dataclass(frozen=True)
class Compared:
    """A network in one precision, on the held-out samples under its own thresholds.

    Attributes:
        name: of the precision.
        accuracy, full_accuracy: under the thresholds, and of the last exit.
        share: of the full network's MACs, spent per sample.
        alone, together: median seconds per sample, one by one and all at once, in turn with the other precision.
        size: bytes of the bundle.
    """

    name: str
    accuracy: float
    full_accuracy: float
    share: float
    alone: float
    together: float
    size: int


def quantise(
    bundle: Path, out: Path, how: Int8, calibration: Calibration, batches: Batches, *, overwrite: bool = False
) -> tuple[Compared, Compared]:
    """Write a bundle in eight bits beside one in float32, calibrated anew on held-out samples for the same wish.

    Returns:
        Float32 and int8, compared on the held-out samples.

    Raises:
        UserError: for a calibration that cannot be repeated, or if more accuracy is lost than its wish allows; nothing
            is written then.
    """
    float32 = OnnxRunner(bundle)
    logits, targets = logits_of(float32, batches())
    former, costs = calibration.policy.measure, calibration.exit_macs
    fitted = fit_and_read(former.name, logits, targets, costs, temperature=former.temperatures is not None)
    outputs = Outputs(fitted.confidences, fitted.predictions, targets)  # both are judged where they were not fitted
    with new_folder(out, overwrite) as folder:
        eight = Int8Bundle(bundle, folder, how, for_ranges(inputs for inputs, _ in batches()))
        found, _ = logits_of(eight.uncalibrated(), batches())
        full = {name: right_alone(each, targets, -1) for name, each in (("float32", logits), ("int8", found))}
        held = Recorded.of_numbered_classes(found, targets)
        anew = calibrated_anew(calibration, held, standard_of(calibration, logits), f"eight bits ({how})")
        int8 = eight.write(anew)
        times = _times({"float32": float32, "int8": int8}, next(in_batches((inputs for inputs, _ in batches()), TIMED)))
        points = {
            "float32": operate(outputs, calibration.policy, costs),
            "int8": OperatingPoint(**anew.expected),
        }
        sizes = {"float32": _size(bundle), "int8": _size(folder)}
        one, other = (
            Compared(
                name,
                points[name].accuracy,
                float(full[name].mean()),
                points[name].macs / calibration.full_macs,
                *times[name],
                sizes[name],
            )
            for name in points
        )
    if "max_accuracy_drop" not in calibration.budget and one.accuracy - other.accuracy > LOSS:
        warnings.warn(
            f"held-out accuracy is {percent(other.accuracy)} in eight bits ({how}), {percent(one.accuracy)} in float32",
            QuantisationWarning,
            stacklevel=3,
        )
    return one, other


def _times(runners: Mapping[str, OnnxRunner], inputs: Arrays) -> dict[str, tuple[float, float]]:
    """Return seconds per sample of each runner, one by one and all at once, in turn."""
    count = len(next(iter(inputs.values())))
    ones = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]
    alone = interleaved_medians({name: partial(_each, runner, ones) for name, runner in runners.items()}, ROUNDS)
    together = interleaved_medians({name: partial(runner, inputs) for name, runner in runners.items()}, ROUNDS)
    return {name: (alone[name] / count, together[name] / count) for name in runners}


def _each(runner: OnnxRunner, batches: Iterable[Arrays]) -> None:
    for batch in batches:
        runner(batch)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
