"""Classify image files with a calibrated run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from exitwise.data.sources import read_image
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import Prediction, Predictions
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.runs.build import pick_device, preprocessing_of
from exitwise.runs.folder import Run
from exitwise.storage.files import expand


def predict(path: str | Path, files: Iterable[str | Path], device: str = "auto") -> Predictions:
    """Classify images with the calibrated early-exit runner.

    Args:
        path: a calibrated run folder.
        files: images, or folders of images.
        device: where to run the network.

    Raises:
        ValueError: without calibration or images, or for a broken image.
    """
    run = Run(path)
    calibration = run.read_calibration()
    images = expand(files)
    preprocessing = preprocessing_of(run.settings)
    transform = preprocessing.for_evaluation()
    place = pick_device(device)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, len(images))
    runner = EarlyExitRunner(run.model(place), calibration.policy, calibration.exit_macs, monitor=monitor)
    full = runner.exit_macs[-1]
    predictions = Predictions()
    for start in range(0, len(images), EVALUATION_BATCH):
        chunk = images[start : start + EVALUATION_BATCH]
        batch = torch.stack([transform(read_image(image, preprocessing.channels)) for image in chunk])
        result = runner(batch.to(place))
        columns = (result.prediction, result.confidence, result.exit, result.macs / full)
        rows = zip(chunk, *(column.tolist() for column in columns), strict=True)
        predictions += [
            Prediction(str(file), run.classes[label], confidence, exit + 1, share)
            for file, label, confidence, exit, share in rows
        ]
    return predictions
