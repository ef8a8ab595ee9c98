"""A bundle calibrated anew on other images, without torch: no graph changes, only the sealed calibration.

Needs SciPy where temperatures or a measure are fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
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
from exitwise.deploy.calibrating import CalibrationWarning, Costs, Recorded, calibrated, drift_of, warn_if_few
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.groups import Groups, groups_of
from exitwise.deploy.monitor import DriftWarning
from exitwise.deploy.onnx_runner import OnnxResult, OnnxRunner
from exitwise.deploy.origin import Origin
from exitwise.errors import DataError, UserError
from exitwise.exiting.measures import create_measure
from exitwise.exiting.rule import leaving_at
from exitwise.kernels.timing import interleaved_medians, warn_if_busy
from exitwise.storage.digest import digest_of
from exitwise.storage.files import why_not_written
from exitwise.storage.folders import image_files, sub_folders

BATCH = 64
"""Images read and run at a time."""

ROUNDS = 30
"""Times that one image is run to each exit, where a latency is asked for."""


def calibrate_bundle(
    bundle: str | Path, data: str | Path, *, groups: Groups | None = None, **asked: Unpack[Wishes]
) -> Calibration:
    """Find thresholds for one wish on labelled images, and write them into an exported bundle.

    A warning says how the images differ from those that it was calibrated on, if they do.

    Args:
        bundle: folder that ``exitwise export`` wrote; its graphs stay as they are.
        data: images that the network was neither trained on nor will be tested on, in a folder per class.
        groups: of the images, as for :func:`exitwise.calibrate`.
        asked: the wish, and how it is to be met, by name: see :class:`~exitwise.Wishes`.

    Raises:
        UserError: unless exactly one wish is given and within reach, for a bundle of version 1, or a damaged one.
        DataError: for images of other classes, none of a class, or one that cannot be read.
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
    images = list(labelled_images(Path(data), runner.classes))
    parts = None if groups is None else groups_of(groups, [str(path) for path, _ in images])
    stamps = ((str(path.relative_to(data)), label, str(path.stat().st_size)) for path, label in images)
    origin = Origin(len(images), digest_of(stamps), str(Path(data).absolute()))
    held = Recorded(*_outputs(runner, images), runner.classes, groups=parts, origin=origin)
    held.check()
    if drift := drift_of(former, held):
        warnings.warn(drift, DriftWarning, stacklevel=2)
    seconds = _exit_seconds(runner, images[0][0], wished) if "latency" in wished.wish else None
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
    warn_if_few(len(held.targets))
    return calibration


def _exit_seconds(runner: OnnxRunner, image: Path, wished: Asked) -> tuple[float, ...]:
    """Return the median seconds until one image has left at each exit, in ONNX Runtime, the exits before included.

    By the graph for single images, where that is for the measure that is wished. A later exit is never taken for
    quicker than an earlier one. Warns where the machine is busy.
    """
    warn_if_busy()
    own, exits = runner.thresholds, len(runner.exit_macs)
    inputs = {name: array[None] for name, array in runner.read(image).items()}
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


def _outputs(runner: OnnxRunner, found: Sequence[tuple[Path, int]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits (N, K, C) and class indices (N) of images with their classes."""
    parts = []
    for start in range(0, len(found), BATCH):
        images = [runner.read(path) for path, _ in found[start : start + BATCH]]
        parts.append(runner.logits({name: np.stack([image[name] for image in images]) for name in images[0]}))
    return np.concatenate(parts), np.array([label for _, label in found], dtype=np.int64)


def labelled_images(data: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """Yield the images of a folder per class, with the index of their class.

    Raises:
        DataError: for a folder of no such class, or without images.
    """
    names = [folder.name for folder in sub_folders(data)] if data.is_dir() else []
    if not names:
        raise DataError(f"expected a folder per class with images at {data}; found none")
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(f"expected the classes of the bundle in {data}; got the unknown {unknown[0]!r}")
    for name in names:
        for path in image_files(data / name):
            yield path, list(classes).index(name)
