"""Images from elsewhere, seen as a run sees its own: what it is calibrated on where others than its own are given."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from exitwise.catalogue.sources import MANIFEST, SHARDS, SOURCES
from exitwise.data import Preprocessing
from exitwise.data.fingerprints import MOST_KNOWN
from exitwise.data.sources import Source
from exitwise.data.sources.files import FileSource, kept_or_read
from exitwise.data.sources.folder import FolderSource
from exitwise.data.sources.manifest import read_manifest
from exitwise.data.sources.shards import shards_at
from exitwise.data.sources.texts import texts_at
from exitwise.data.splits import Split
from exitwise.data.tokens import Tokens
from exitwise.deploy.calibration import Calibration
from exitwise.errors import DataError, ExitwiseWarning, UserError
from exitwise.runs.build import preprocessing_of
from exitwise.runs.folder import Run
from exitwise.runs.records.identity import known_to
from exitwise.storage.images import BrokenImageError


def images_at(data: Path, run: Run) -> Split:
    """Return all images of a folder per class, a table, or shards, as a run sees its own.

    Warns of images that the run is tested on.

    Raises:
        DataError: for classes that the run has not, no images, or many that it was trained on.
    """
    noun = run.settings.noun
    if not data.exists():
        where = "in a table" if noun == "texts" else "in a folder per class, a table or shards"
        raise DataError(f"expected {noun} {where} at {data}; found nothing")
    preprocessing = preprocessing_of(run.settings)
    source = _source_at(data, run.classes, preprocessing)
    split = Split(source, torch.arange(len(source.targets)), preprocessing)
    known = _of_same_pixels(run, split) if run.settings.data in SOURCES else known_to(run.path, split)
    trained, tested = (known.get(part, []) for part in ("train", "test"))
    if len(trained) > MOST_KNOWN * len(split):
        raise DataError(
            f"expected the run's {noun} as they were, or others that it was not trained on, in {data}; it was trained "
            f"on {len(trained)} of {len(split)} there, such as {trained[0]}"
        )
    if tested:
        warnings.warn(
            f"{len(tested)} of {len(split)} {noun} in {data} are among those that the run is tested on, such as "
            f"{tested[0]}: what `exitwise evaluate` says after that is too good",
            ExitwiseWarning,
            stacklevel=2,
        )
    return split


def _source_at(data: Path, classes: Sequence[str], preprocessing: Preprocessing | Tokens) -> Source:
    if isinstance(preprocessing, Tokens):
        return texts_at(data, classes, preprocessing)
    size = None if preprocessing.any_size else preprocessing.image_size
    if MANIFEST.is_at(data):
        labelled = [image for part in read_manifest(data, classes).parts.values() for image in part]
        return kept_or_read(FileSource(labelled, classes, preprocessing.channels, size), size)
    if SHARDS.is_at(data):
        return shards_at(data, classes, preprocessing.channels, size)
    return kept_or_read(FolderSource(data, preprocessing.channels, size, classes), size)


def _of_same_pixels(run: Run, split: Split) -> dict[str, list[str]]:
    """Return which images of a split a run of named data, of which it keeps no list, holds itself, by its own part."""
    try:
        own = run.look_up_splits()
    except UserError:  # its data is not here: nothing can be told
        return {}
    parts = {pixels: part for part in ("train", "test") for _, pixels in _pixels(getattr(own, part))}
    found: dict[str, list[str]] = {}
    for name, pixels in _pixels(split):
        if pixels in parts:
            found.setdefault(parts[pixels], []).append(name)
    return found


def _pixels(split: Split) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each image that can be read, and a digest of its pixels."""
    for index in split.indices.tolist():
        try:
            pixels = split.source.read(index)
        except BrokenImageError:
            continue
        digest = hashlib.sha256(pixels.contiguous().numpy().tobytes())
        digest.update(str(tuple(pixels.shape)).encode())
        yield split.source.names[index], digest.digest()


def calibrated_on(run: Run, calibration: Calibration | None, own: Split) -> Split:
    """Return the images that a run's calibration was made on: its own calibration images, or those from elsewhere.

    Raises:
        UserError: if those from elsewhere are gone or have changed.
    """
    origin = None if calibration is None else calibration.origin
    if origin is None or origin.data is None:
        return own
    place = Path(origin.data)
    if not place.exists():
        raise UserError(f"expected the {run.settings.noun} that {run.path} was calibrated on at {place}; found nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExitwiseWarning)  # said when it was calibrated
        split = images_at(place, run)
    if split.fingerprint() != origin.sha256:
        raise UserError(
            f"expected the {run.settings.noun} that {run.path} was calibrated on at {place}; they have changed"
        )
    return split
