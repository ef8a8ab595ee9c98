"""An exported network in eight bits: thresholds anew for the same wish, and what it loses and gains beside float32."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitwise.benching.timing import interleaved_medians
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.int8 import Arrays, Int8, quantised
from exitwise.deploy.formats.onnx import write_bundle
from exitwise.deploy.formats.onnx_weights import WeightFiles
from exitwise.deploy.manifest import MANIFEST, TOKENIZER, read_manifest
from exitwise.deploy.monitor import Reference
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import new_folder
from exitwise.errors import ExitwiseWarning, UserError
from exitwise.evaluation.outputs import Outputs, anytime, operate
from exitwise.exiting.calibration import calibrate_accuracy, calibrate_macs, calibrate_proportions
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.table import budget_table
from exitwise.shown import percent

Batches = Callable[[], Iterable[tuple[Arrays, NDArray[np.int64]]]]
"""Held-out batches, anew at each call: arrays of inputs by name, and targets."""

RANGES, RANGES_BATCH = 128, 16
"""Samples that static ranges are found on, and how many at a time."""

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
    logits, targets = _logits(float32, batches)
    outputs = Outputs.from_logits(logits, targets, calibration.policy.measure)
    said = dict(read_manifest(bundle / MANIFEST, bundle / MANIFEST).content)
    for key in ("format", "version", "onnxruntime", "stages", "single", "data"):
        del said[key]
    with new_folder(out, overwrite) as folder:
        weights = WeightFiles(folder)
        if (bundle / TOKENIZER).is_file():
            shutil.copy(bundle / TOKENIZER, folder / TOKENIZER)
        graphs = quantised(bundle, weights, how, islice(_split(batches), RANGES // RANGES_BATCH))
        uncalibrated = Calibration.of(ExitPolicy([None] * (len(graphs) - 1)), calibration.exit_macs)
        write_bundle(folder, graphs, weights.files, said, uncalibrated)
        found, _ = _logits(OnnxRunner(folder), batches)
        full = {name: _full_accuracy(each, targets) for name, each in (("float32", logits), ("int8", found))}
        anew = _calibrated(calibration, found, targets, full["float32"], how)
        write_bundle(folder, graphs, weights.files, said, anew)
        times = _times({"float32": float32, "int8": OnnxRunner(folder)}, next(iter(_split(batches, TIMED))))
        points = {
            "float32": operate(outputs, calibration.policy, calibration.exit_macs),
            "int8": OperatingPoint(**anew.expected),
        }
        sizes = {"float32": _size(bundle), "int8": _size(folder)}
        one, other = (
            Compared(
                name,
                points[name].accuracy,
                full[name],
                points[name].macs / calibration.exit_macs[-1],
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


def check_repeatable(calibration: Calibration) -> None:
    """Raise UserError for a wish that cannot be repeated for another network."""
    wish = ", ".join(calibration.budget)
    if calibration.guarantee is not None or wish not in ("budget", "macs", "p", "proportions", "max_accuracy_drop"):
        raise UserError(
            "expected a calibration for a budget, MACs, p, proportions or an accuracy, which eight bits are calibrated "
            f"for anew; got {'a guarantee' if calibration.guarantee else wish or 'thresholds without a wish'}"
        )


def _calibrated(
    calibration: Calibration, logits: NDArray[Any], targets: NDArray[np.int64], full: float, how: Int8
) -> Calibration:
    """Return a calibration for the same wish on other logits; ``full`` is the accuracy that drops count from."""
    costs, wish, former = calibration.exit_macs, calibration.budget, calibration.policy.measure
    fitted = fit_and_read(former.name, logits, targets, costs, temperature=former.temperatures is not None)
    measure, outputs = fitted.measure, Outputs(fitted.confidences, fitted.predictions, targets)
    proportions: Sequence[float] = calibration.proportions
    if len(costs) == 1:
        policy = ExitPolicy([])
    elif "max_accuracy_drop" in wish:
        lost = full - max(_full_accuracy(logits, targets), anytime(outputs)[-1])
        if lost > wish["max_accuracy_drop"]:
            raise UserError(
                f"expected eight bits ({how}) to lose at most {100 * wish['max_accuracy_drop']:.3g} points of held-out "
                f"accuracy, as calibrated; the last exit alone loses {100 * lost:.3g}: nothing was written"
            )
        policy, proportions = calibrate_accuracy(
            outputs.confidences, outputs.correct, costs, wish["max_accuracy_drop"], measure.family, full
        )
    elif "p" in wish or "proportions" in wish:
        policy = calibrate_proportions(outputs.confidences, proportions)
    else:
        target = wish["macs"] if "macs" in wish else wish["budget"] * costs[-1]
        policy, proportions = calibrate_macs(outputs.confidences, costs, target, measure.family)
    left = outputs.under(policy)
    return replace(
        calibration,
        policy=policy.read_by(measure),
        proportions=tuple(proportions),
        expected=operate(outputs, policy, costs)._asdict(),
        reference=Reference.of(left.exits, left.confidences, len(costs), policy.thresholds),
        table=budget_table(outputs.confidences, outputs.correct, costs, family=measure.family),
    )


def _full_accuracy(logits: NDArray[Any], targets: NDArray[np.int64]) -> float:
    """Return how often the last exit's own answer is right."""
    return float((logits[:, -1].argmax(-1) == targets).mean())


def _logits(runner: OnnxRunner, batches: Batches) -> tuple[NDArray[Any], NDArray[np.int64]]:
    parts = [(runner.logits(inputs), targets) for inputs, targets in batches()]
    logits, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    return logits, targets


def _split(batches: Batches, size: int = RANGES_BATCH) -> Iterator[dict[str, NDArray[Any]]]:
    """Return the inputs in batches of ``size`` samples, or what there is."""
    for inputs, targets in batches():
        for start in range(0, len(targets), size):
            yield {name: array[start : start + size] for name, array in inputs.items()}


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
