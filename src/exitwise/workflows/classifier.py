"""What classifies images or texts: a calibrated run's network, or an exported bundle, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.calibration import CALIBRATION
from exitwise.deploy.manifest import MANIFEST, read_manifest
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.states import bundle_digest, digest_of
from exitwise.errors import UserError
from exitwise.settings.checks import check_run_folder
from exitwise.shown import Noun
from exitwise.storage.images import BrokenImageError


class Classifier(NamedTuple):
    """An image at a time becomes an input, and some inputs together become answers.

    Attributes:
        read: an image, or a text, as an input; several threads may call it.
        classify: some inputs, as a result of their fates.
        classes: names.
        full_macs: what shares of cost are of.
        digest: of what the answers depend on.
    """

    read: Callable[[Any], Any]
    classify: Callable[[Sequence[Any]], Any]
    classes: Sequence[str]
    full_macs: float
    digest: str


class EmptyTextError(BrokenImageError):
    """A text without anything in it."""

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        super().__init__(path, kind, reason)
        self.args = (f"expected a text; {reason}",)


def classifies(folder: Path) -> Noun:
    """Return what a run or a bundle classifies.

    Raises:
        UserError: for a folder that is neither, or damaged.
    """
    if is_bundle(folder):
        return read_manifest(folder / MANIFEST, folder / MANIFEST).noun
    check_run_folder(folder)
    from exitwise.settings.yaml import read_yaml

    return "images" if read_yaml(folder / "config.yaml").get("tokens") is None else "texts"


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
    runner.monitor = Monitor.of_all(len(runner.exit_macs), runner.reference, images, runner.manifest.noun)
    if runner.manifest.noun == "texts":
        return Classifier(a_text, runner, runner.classes, runner.full_macs, bundle_digest(folder))

    def classify(chunk: Sequence[Any]) -> Any:
        return runner({name: np.stack([each[name] for each in chunk]) for name in chunk[0]})

    return Classifier(runner.read, classify, runner.classes, runner.full_macs, bundle_digest(folder))


def _by_run(folder: Path, device: str, images: int, name: str | None) -> Classifier:
    with needing_extras("a run folder"):
        import torch

        from exitwise.data import Preprocessing
        from exitwise.data.sources import read_image
        from exitwise.exiting.runner import EarlyExitRunner
        from exitwise.kernels.inputs import moved
        from exitwise.runs.build import pick_device, preprocessing_of
        from exitwise.runs.folder import Run

    run = Run(folder).under(name)
    preprocessing = preprocessing_of(run.settings)
    if isinstance(preprocessing, Preprocessing) and preprocessing.signals:
        raise UserError(f"expected a run on images; {folder} is of signals, which are given to ew.EarlyExitRunner")
    place = pick_device(device)
    model = run.model(place)
    calibration = run.read_calibration(model)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, images, run.settings.noun)
    runner = EarlyExitRunner(model, calibration.policy, calibration.exit_macs, monitor=monitor)
    about = run.classes, calibration.full_macs, digest_of(CALIBRATION.called(name).path(folder))
    if not isinstance(preprocessing, Preprocessing):
        tokens = preprocessing
        return Classifier(a_text, lambda some: runner(moved(tokens.batch(tokens.ids(some)[0]), place)), *about)
    transform = preprocessing.for_evaluation()
    return Classifier(
        lambda image: transform(read_image(image, preprocessing.channels)),
        lambda chunk: runner(torch.stack(list(chunk)).to(place)),
        *about,
    )


def a_text(text: str) -> str:
    """Return a text as it is.

    Raises:
        EmptyTextError: for an empty one.
    """
    if not text.strip():
        raise EmptyTextError(Path(), "empty", "it is empty")
    return text


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
