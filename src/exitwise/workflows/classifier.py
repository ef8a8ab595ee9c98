"""What classifies image files: a calibrated run's network, or an exported bundle, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.calibration import CALIBRATION
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.states import bundle_digest, digest_of
from exitwise.errors import UserError
from exitwise.storage.images import ImageLike


class Classifier(NamedTuple):
    """An image at a time becomes an input, and some inputs together become answers.

    Attributes:
        read: an image as an input; several threads may call it.
        classify: some inputs, as a result of their fates.
        classes: names.
        full_macs: what shares of cost are of.
        digest: of what the answers depend on.
    """

    read: Callable[[ImageLike], Any]
    classify: Callable[[Sequence[Any]], Any]
    classes: Sequence[str]
    full_macs: float
    digest: str


def open_classifier(
    folder: Path, device: str, threads: int | None, images: int, top: int, calibration: str | None = None
) -> Classifier:
    """Return what classifies by a run folder or a bundle; it compares so many images with the calibration's.

    Raises:
        UserError: without calibration, for a damaged bundle, or for options that are of bundles.
    """
    if is_bundle(folder):
        if calibration is not None:
            raise UserError(f"a bundle has one calibration; got {calibration} with {folder}")
        return _by_bundle(folder, "cpu" if device == "auto" else device, threads, images, top)
    for name, value in {"threads": threads, "top": top or None}.items():
        if value is not None:
            raise UserError(f"{name} is for a bundle; got {value} with the run folder {folder}")
    return _by_run(folder, device, images, calibration)


def _by_bundle(folder: Path, provider: str, threads: int | None, images: int, top: int) -> Classifier:
    import numpy as np

    runner = OnnxRunner(folder, threads, provider=provider)
    if top > len(runner.classes):
        raise UserError(f"expected at most {len(runner.classes)} classes for top; got {top}")
    runner.monitor = Monitor.of_all(len(runner.exit_macs), runner.reference, images)

    def classify(chunk: Sequence[Any]) -> Any:
        return runner({name: np.stack([each[name] for each in chunk]) for name in chunk[0]})

    return Classifier(runner.read, classify, runner.classes, runner.full_macs, bundle_digest(folder))


def _by_run(folder: Path, device: str, images: int, name: str | None) -> Classifier:
    with needing_extras("a run folder"):
        import torch

        from exitwise.data.sources import read_image
        from exitwise.exiting.runner import EarlyExitRunner
        from exitwise.runs.build import pick_device, preprocessing_of
        from exitwise.runs.folder import Run

    run = Run(folder).under(name)
    preprocessing = preprocessing_of(run.settings)
    if preprocessing.signals:
        raise UserError(f"expected a run on images; {folder} is of signals, which are given to ew.EarlyExitRunner")
    transform = preprocessing.for_evaluation()
    place = pick_device(device)
    model = run.model(place)
    calibration = run.read_calibration(model)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, images)
    runner = EarlyExitRunner(model, calibration.policy, calibration.exit_macs, monitor=monitor)
    return Classifier(
        lambda image: transform(read_image(image, preprocessing.channels)),
        lambda chunk: runner(torch.stack(list(chunk)).to(place)),
        run.classes,
        calibration.full_macs,
        digest_of(CALIBRATION.called(name).path(folder)),
    )


def fates_of(result: Any, classes: Sequence[str], full_macs: float, top: int) -> list[tuple[Any, ...]]:
    """Return class (None: not answered), confidence, exit, share of cost and likeliest classes of each sample."""
    columns = (result.prediction, result.answered, result.confidence, result.exit, result.macs / full_macs)
    likeliest: list[tuple[tuple[str, float], ...]] = [()] * len(result.exit)
    if top:
        numbers, probabilities = (each.tolist() for each in result.top(top))
        likeliest = [
            tuple((classes[k], p) for k, p in zip(*pair, strict=True))
            for pair in zip(numbers, probabilities, strict=True)
        ]
    return [
        (classes[label] if known else None, confidence, exit + 1, share, best)
        for label, known, confidence, exit, share, best in zip(
            *(each.tolist() for each in columns), likeliest, strict=True
        )
    ]
