"""A bundle calibrated anew on other samples, without torch: no graph changes, only the sealed calibration.

Needs SciPy where temperatures or a measure are fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from exitwise.budgets import check_count
from exitwise.deploy.asked import Asked, Wishes
from exitwise.deploy.bundle import write_sealed
from exitwise.deploy.calibrating import (
    CalibrationWarning,
    Costs,
    Recorded,
    calibrated,
    check_samples,
    drift_of,
    warn_if_few,
)
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.groups import Groups, groups_of
from exitwise.deploy.labelled import Labelled, labelled_images, labelled_texts
from exitwise.deploy.monitor import DriftWarning
from exitwise.deploy.onnx_runner import OnnxResult, OnnxRunner
from exitwise.deploy.origin import Origin
from exitwise.errors import UserError
from exitwise.exiting.measures import create_measure
from exitwise.exiting.rule import leaving_at
from exitwise.kernels.timing import interleaved_medians, warn_if_busy
from exitwise.storage.digest import digest_of
from exitwise.storage.files import why_not_written

BATCH = 64
"""Samples read and run at a time."""

ROUNDS = 30
"""Times that one image is run to each exit, where a latency is asked for."""


def calibrate_bundle(
    bundle: str | Path, data: str | Path, *, groups: Groups | None = None, **asked: Unpack[Wishes]
) -> Calibration:
    """Find thresholds for one wish on labelled images or texts, and write them into an exported bundle.

    A warning says how they differ from those that it was calibrated on, if they do.

    Args:
        bundle: folder that ``exitwise export`` wrote; its graphs stay as they are.
        data: samples that the network was neither trained on nor will be tested on: images in a folder per class, or a
            table of texts and labels.
        groups: of images, as for :func:`exitwise.calibrate`.
        asked: the wish, and how it is to be met, by name: see :class:`~exitwise.Wishes`.

    Raises:
        UserError: unless exactly one wish is given and within reach, for a bundle of version 1, or a damaged one.
        DataError: for samples of other classes, none of a class, or one that cannot be read.
    """
    runner = OnnxRunner(bundle)
    if runner.manifest.version == 1:
        raise UserError(f"expected a bundle of version 2; {runner.folder} is of version 1: export it again")
    if (why := why_not_written(runner.folder)) is not None:
        raise UserError(f"thresholds are stored in {runner.folder}, which cannot be written to ({why})")
    former = runner.calibration
    wished = Asked.of(asked, former.exit_macs[-1] / former.full_macs)
    check_count("exit proportions", wished.wish.get("proportions"), former.policy.exits)
    if asked.get("measure") is None:
        own = former.policy.measure
        wished = replace(wished, measure=own.name, temperature=wished.temperature or own.temperatures is not None)
    wished = _with_limit(wished, asked, former)
    noun = runner.manifest.noun
    find = labelled_texts if noun == "texts" else labelled_images
    found = list(find(Path(data), runner.classes))
    check_samples(np.array([each.label for each in found]), runner.classes, former.policy.exits, noun)
    parts = None if groups is None else groups_of(groups, [each.name for each in found])
    origin = Origin(len(found), digest_of(each.known_by for each in found), str(Path(data).absolute()), noun)
    targets = np.array([each.label for each in found], dtype=np.int64)
    held = Recorded(_logits(runner, found), targets, runner.classes, groups=parts, origin=origin)
    held.check_finite()
    if drift := drift_of(former, held):
        warnings.warn(drift, DriftWarning, stacklevel=2)
    seconds = _exit_seconds(runner, found, wished) if "latency" in wished.wish else None
    costs = Costs(former.exit_macs, former.full_macs, seconds)
    calibration = calibrated(wished, held, costs, network=former.network)
    if former.guarantee is not None and wished.guarantee is None:
        warnings.warn(
            f"the former calibration was with a guarantee, this one is without: {former.promise(former.guarantee)}",
            CalibrationWarning,
            stacklevel=2,
        )
    if calibration.is_kept_promise:
        write_sealed(runner.folder, runner.manifest.content, calibration)
    warn_if_few(len(held.targets), noun)
    return calibration


def _exit_seconds(runner: OnnxRunner, found: Sequence[Labelled], wished: Asked) -> tuple[float, ...]:
    """Return the median seconds until one sample, of texts one of median length, has left at each exit, in ONNX
    Runtime, the exits before included.

    By the graph for single samples, where that is for the measure that is wished. A later exit is never taken for
    quicker than an earlier one. Warns where the machine is busy.
    """
    warn_if_busy()
    own, exits = runner.thresholds, len(runner.exit_macs)
    inputs = _read(runner, [sorted(found, key=lambda each: len(str(each.content)))[len(found) // 2]])
    same = create_measure(wished.measure) == runner.calibration.policy.measure and not wished.temperature
    run = runner if same else runner.by_stages

    def leave(exit: int) -> OnnxResult:
        runner.thresholds = leaving_at(exit, exits)
        return run(inputs)

    functions = {exit: partial(leave, exit) for exit in range(exits)}
    seconds = interleaved_medians(functions, ROUNDS)
    runner.thresholds = own
    return tuple(accumulate(seconds.values(), max))


def _with_limit(wished: Asked, asked: Wishes, former: Calibration) -> Asked:
    """Return the wish with the former limit of answering, which is a confidence of one measure and of no other."""
    limit, own = former.policy.abstain_below, former.policy.measure
    if limit is None or asked.get("abstain_below") is not None or wished.answered_accuracy is not None:
        return wished
    if (wished.measure, wished.temperature) == (own.name, own.temperatures is not None):
        return replace(wished, abstain_below=limit)
    warnings.warn(
        f"confidences below {limit:.4f} by {own.name} were not answered; that says nothing by another measure, and now "
        "all is answered (--abstain-below, --answered-accuracy)",
        CalibrationWarning,
        stacklevel=3,
    )
    return wished


def _logits(runner: OnnxRunner, found: Sequence[Labelled]) -> NDArray[Any]:
    """Return the logits (N, K, C) of samples."""
    starts = range(0, len(found), BATCH)
    return np.concatenate([runner.logits(_read(runner, found[start : start + BATCH])) for start in starts])


def _read(runner: OnnxRunner, found: Sequence[Labelled]) -> dict[str, NDArray[Any]]:
    """Return samples as a batch, by input."""
    if runner.manifest.noun == "texts":
        return runner.read_texts([each.content for each in found])
    images = [runner.read(each.content) for each in found]
    return {name: np.stack([image[name] for image in images]) for name in images[0]}
