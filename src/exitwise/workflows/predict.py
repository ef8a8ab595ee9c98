"""Classify image files with a calibrated run or an exported bundle, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.predictions import Prediction, Predictions
from exitwise.errors import UserError
from exitwise.storage.files import expand

BATCH = 64
"""Images at a time."""


def predict(
    source: str | PathLike[str], files: str | PathLike[str] | Iterable[str | PathLike[str]], device: str = "auto"
) -> Predictions:
    """Classify images, each as deep as it needs.

    Args:
        source: a calibrated run folder, or an exported bundle.
        files: an image, a folder of images, or several of them.
        device: where to run a run's network; a bundle runs on the CPU.

    Raises:
        ValueError: without calibration or images, or for a damaged bundle or a broken image.
    """
    images = expand(files)
    folder = Path(source)
    if is_bundle(folder):
        if device not in ("auto", "cpu"):
            raise UserError(f"expected device auto or cpu for a bundle, which runs by ONNX Runtime there; got {device}")
        return _by_bundle(folder, images)
    return _by_run(folder, images, device)


def _by_bundle(folder: Path, images: Sequence[Path]) -> Predictions:
    import numpy as np

    runner = OnnxRunner(folder)
    runner.monitor = Monitor.of_all(len(runner.exit_macs), runner.reference, len(images))

    def classify(chunk: Sequence[Path]) -> Any:
        read = [runner.read(file) for file in chunk]
        return runner({name: np.stack([each[name] for each in read]) for name in read[0]})

    return _in_batches(images, classify, runner.classes, runner.exit_macs[-1])


def _by_run(folder: Path, images: Sequence[Path], device: str) -> Predictions:
    with needing_extras("a run folder"):
        import torch

        from exitwise.data.sources import read_image
        from exitwise.exiting.runner import EarlyExitRunner
        from exitwise.runs.build import pick_device, preprocessing_of
        from exitwise.runs.folder import Run

    run = Run(folder)
    calibration = run.read_calibration()
    preprocessing = preprocessing_of(run.settings)
    transform = preprocessing.for_evaluation()
    place = pick_device(device)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, len(images))
    runner = EarlyExitRunner(run.model(place), calibration.policy, calibration.exit_macs, monitor=monitor)

    def classify(chunk: Sequence[Path]) -> Any:
        batch = torch.stack([transform(read_image(image, preprocessing.channels)) for image in chunk])
        return runner(batch.to(place))

    return _in_batches(images, classify, run.classes, calibration.exit_macs[-1])


def _in_batches(
    images: Sequence[Path], classify: Callable[[Sequence[Path]], Any], classes: Sequence[str], full_macs: float
) -> Predictions:
    """Return the answers of a runner to all images; ``classify`` gives its result for some."""
    predictions = Predictions()
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        result = classify(chunk)
        columns = (result.prediction, result.confidence, result.exit, result.macs / full_macs)
        rows = zip(chunk, *(column.tolist() for column in columns), strict=True)
        predictions += [
            Prediction(str(file), classes[label], confidence, exit + 1, share)
            for file, label, confidence, exit, share in rows
        ]
    return predictions
