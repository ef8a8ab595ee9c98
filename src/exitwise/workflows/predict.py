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
from exitwise.storage.images import ImageLike

BATCH = 64
"""Images at a time."""


def predict(
    source: str | PathLike[str],
    files: ImageLike | Iterable[ImageLike],
    device: str = "auto",
    *,
    threads: int | None = None,
) -> Predictions:
    """Classify images, each as deep as it needs.

    Args:
        source: a calibrated run folder, or an exported bundle.
        files: an image, a folder of images, or several of them. An image is a path, the bytes of a file, a file that is
            open, or an array of pixels: uint8 (height, width) or (height, width, 3).
        device: where to run a run's network; of a bundle ONNX Runtime's provider: cpu, cuda, openvino, coreml, ...
        threads: of a bundle on the CPU; by default as many as cores may be used.

    Raises:
        ValueError: without calibration or images, or for a damaged bundle or a broken image.
    """
    images = expand(files)
    folder = Path(source)
    if is_bundle(folder):
        return _by_bundle(folder, images, "cpu" if device == "auto" else device, threads)
    if threads is not None:
        raise UserError(f"threads are those of a bundle; got {threads} with the run folder {folder}")
    return _by_run(folder, images, device)


def _by_bundle(folder: Path, images: Sequence[ImageLike], provider: str, threads: int | None) -> Predictions:
    import numpy as np

    runner = OnnxRunner(folder, threads, provider=provider)
    runner.monitor = Monitor.of_all(len(runner.exit_macs), runner.reference, len(images))

    def classify(chunk: Sequence[ImageLike]) -> Any:
        read = [runner.read(file) for file in chunk]
        return runner({name: np.stack([each[name] for each in read]) for name in read[0]})

    return _in_batches(images, classify, runner.classes, runner.full_macs)


def _by_run(folder: Path, images: Sequence[ImageLike], device: str) -> Predictions:
    with needing_extras("a run folder"):
        import torch

        from exitwise.data.sources import read_image
        from exitwise.exiting.runner import EarlyExitRunner
        from exitwise.runs.build import pick_device, preprocessing_of
        from exitwise.runs.folder import Run

    run = Run(folder)
    preprocessing = preprocessing_of(run.settings)
    if preprocessing.signals:
        raise UserError(f"expected a run on images; {folder} is of signals, which are given to ew.EarlyExitRunner")
    transform = preprocessing.for_evaluation()
    place = pick_device(device)
    model = run.model(place)
    calibration = run.read_calibration(model)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, len(images))
    runner = EarlyExitRunner(model, calibration.policy, calibration.exit_macs, monitor=monitor)

    def classify(chunk: Sequence[ImageLike]) -> Any:
        batch = torch.stack([transform(read_image(image, preprocessing.channels)) for image in chunk])
        return runner(batch.to(place))

    return _in_batches(images, classify, run.classes, calibration.full_macs)


def _in_batches(
    images: Sequence[ImageLike],
    classify: Callable[[Sequence[ImageLike]], Any],
    classes: Sequence[str],
    full_macs: float,
) -> Predictions:
    """Return the answers of a runner to all images; ``classify`` gives its result for some."""
    predictions = Predictions()
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        result = classify(chunk)
        columns = (result.prediction, result.confidence, result.exit, result.macs / full_macs)
        names = (_name(image, number) for number, image in enumerate(chunk, start=start + 1))
        rows = zip(names, *(column.tolist() for column in columns), strict=True)
        predictions += [
            Prediction(file, classes[label], confidence, exit + 1, share)
            for file, label, confidence, exit, share in rows
        ]
    return predictions


def _name(image: ImageLike, number: int) -> str:
    """Return what an answer calls an image: its path, or that it was the first, second, ... of those given."""
    return str(image) if isinstance(image, (str, PathLike)) else str(getattr(image, "name", f"image {number}"))
