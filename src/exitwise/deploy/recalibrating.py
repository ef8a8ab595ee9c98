"""A bundle calibrated anew on other images, without torch: no graph changes, only the sealed calibration.

Needs SciPy where temperatures or a measure are fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitwise.budgets import check_count
from exitwise.catalogue.measures import MeasureName
from exitwise.deploy.bundle import read_bundle, write_sealed
from exitwise.deploy.calibrating import Asked, Costs, Recorded, calibrated, drift_of, warn_if_few
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import DriftWarning
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.errors import DataError, UserError
from exitwise.exiting.risk import Risk
from exitwise.exiting.wish import DropFrom, Thresholding, check_wish
from exitwise.storage.files import image_files

BATCH = 64
"""Images read and run at a time."""


def calibrate_bundle(
    bundle: str | Path,
    data: str | Path,
    *,
    budget: float | None = None,
    macs: float | None = None,
    p: float | None = None,
    proportions: Sequence[float] | None = None,
    max_accuracy_drop: float | None = None,
    guarantee: float | None = None,
    risk: Risk | None = None,
    drop_from: DropFrom = "best",
    thresholds: Thresholding | None = None,
    measure: MeasureName | None = None,
    temperature: bool = False,
) -> Calibration:
    """Find thresholds for one wish on labelled images, and write them into an exported bundle.

    A warning says how the images differ from those that it was calibrated on, if they do.

    Args:
        bundle: folder that ``exitwise export`` wrote; its graphs stay as they are.
        data: images that the network was neither trained on nor will be tested on, in a folder per class.
        budget, macs, p, proportions, max_accuracy_drop, guarantee, risk, drop_from, thresholds, temperature: as for
            :func:`exitwise.calibrate`.
        measure: by default the bundle's own, with temperatures if it has any.

    Raises:
        UserError: unless exactly one wish is given and within reach, for a bundle of version 1, or a damaged one.
        DataError: for images of other classes, none of a class, or one that cannot be read.
    """
    wishes = {
        "budget": budget,
        "macs": macs,
        "p": p,
        "proportions": proportions,
        "max_accuracy_drop": max_accuracy_drop,
    }
    folder, runner = Path(bundle), OnnxRunner(bundle)
    manifest = read_bundle(folder).manifest
    if manifest.version == 1:
        raise UserError(f"expected a bundle of version 2; {folder} is of version 1: export it again")
    former = runner.calibration
    exits = former.policy.exits
    most = former.exit_macs[-1] / former.full_macs
    given = check_wish(wishes, guarantee, thresholds, risk, drop_from, most)
    check_count("exit proportions", proportions, exits)
    own = former.policy.measure
    asked = Asked(
        given,
        guarantee,
        risk,
        drop_from,
        thresholds,
        measure or own.name,
        temperature or (measure is None and own.temperatures is not None),
    )
    held = Recorded(*_outputs(runner, Path(data)), runner.classes)
    held.check()
    if drift := drift_of(former, held):
        warnings.warn(drift, DriftWarning, stacklevel=2)
    costs = Costs(former.exit_macs, former.full_macs)
    calibration = calibrated(asked, held, costs, network=former.network)
    if calibration.is_kept_promise:
        write_sealed(folder, manifest.content, calibration)
    warn_if_few(len(held.targets))
    return calibration


def _outputs(runner: OnnxRunner, data: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits (N, K, C) and class indices (N) of the images in a folder per class."""
    found = list(labelled_images(data, runner.classes))
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
    names = sorted(each.name for each in data.iterdir() if each.is_dir()) if data.is_dir() else []
    if not names:
        raise DataError(f"expected a folder per class with images at {data}; found none")
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(f"expected the classes of the bundle in {data}; got the unknown {unknown[0]!r}")
    for name in names:
        for path in image_files(data / name):
            yield path, list(classes).index(name)
