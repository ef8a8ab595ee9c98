"""Decodes every image of a data set, and says what is wrong with it and whether training would stop."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import NamedTuple

from exitwise.catalogue.sources import ARROW, MANIFEST, SHARDS, is_named
from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.data.sources.folder import without_images
from exitwise.data.sources.layout import class_folders, layout_of
from exitwise.data.sources.manifest import read_manifest
from exitwise.data.sources.shards import read_shards
from exitwise.doctor import Finding
from exitwise.doctor.alike import alike, thumbnail
from exitwise.doctor.samples import SHOWN, Sample, imbalance, pairs_shown, small_classes, twins
from exitwise.doctor.texts import examine_texts
from exitwise.errors import DataError, ExitwiseWarning, UserError
from exitwise.runs.build import build_model, load_splits, texts_of
from exitwise.runs.enough import check_enough
from exitwise.settings.checks import check_data
from exitwise.settings.schema import Settings
from exitwise.storage.folders import entries_below, image_files
from exitwise.storage.images import BrokenImageError, read_header, read_pixels


class Examination(NamedTuple):
    """Findings, and all images; none for data sets that are known by name, in Arrow, or of texts."""

    findings: list[Finding]
    images: list[Sample]


def examine_data(
    settings: Settings, threads: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> Examination:
    """Look over a data set as a training with these settings would use it, calibration and evaluation included.

    Args:
        settings: of the training.
        threads: how many images to decode at once.
        progress: called with the numbers of images done and in all.
    """
    data = settings.data
    try:
        check_data(data)
    except DataError as error:
        return Examination([Finding("problem", str(error))], [])
    if is_named(data) or ARROW.is_at(Path(data)):
        return Examination([_as_training_sees_it(settings, [])], [])
    if settings.tokens is not None:
        return Examination([_as_training_sees_it(settings, []), *examine_texts(settings)], [])
    images = list(_decoded(_listed(Path(data)), threads, progress))
    whole = [image for image in images if image.fault is None]
    findings = [
        _as_training_sees_it(settings, [image.fault for image in images if image.fault is not None]),
        _broken(images, settings.max_broken),
        *_odd(whole),
        *small_classes(images, "images"),
        *imbalance(whole, "images"),
        *twins(whole, "images"),
        *_alike(whole),
        *_never_read(Path(data)),
    ]
    return Examination(findings, images)


def _listed(root: Path) -> list[Sample]:
    """Return the image files of each part and class."""
    if MANIFEST.is_at(root):
        try:
            classes, found = read_manifest(root)
        except DataError:  # which is a finding of its own
            return []
        return [Sample(part, classes[image.target], image.path) for part, images in found.items() for image in images]
    if SHARDS.is_at(root):
        try:
            parts = read_shards(root)
        except DataError:
            return []
        return [
            Sample(part if len(parts) > 1 else "", each.label, each.image.path, inside=each.image)
            for part, samples in parts.items()
            for each in samples
        ]
    return [
        Sample(part, name, path)
        for part, folder in _parts(root).items()
        for name in class_folders(folder)
        for path in image_files(folder / name)
    ]


def _parts(root: Path) -> dict[str, Path]:
    """Return the folder of each part; of a folder per class, or of parts that cannot be used, the whole."""
    try:
        layout = layout_of(root)
    except DataError:  # which is a finding of its own
        layout = None
    return {"": root} if layout is None else layout.parts()


def _decoded(listed: list[Sample], threads: int, progress: Callable[[int, int], None]) -> Iterator[Sample]:
    with ThreadPoolExecutor(threads) as pool:
        for done, image in enumerate(pool.map(_decode, listed), start=1):
            progress(done, len(listed))
            yield image


def _decode(image: Sample) -> Sample:
    try:
        content = image.path if image.inside is None else image.inside.content()
        small = thumbnail(read_pixels(content, 3))
        size, conversions = read_header(content)
    except BrokenImageError as error:
        return image._replace(fault=Skipped.of(error)._replace(path=str(image.path)))
    with image.path.open("rb") if isinstance(content, Path) else BytesIO(content) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return image._replace(sha256=digest, size=size, conversions=conversions, thumbnail=small)


def _as_training_sees_it(settings: Settings, broken: Iterable[Skipped]) -> Finding:
    """Return whether the images can be found, divided and held out, as many as training and what follows need."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExitwiseWarning)  # of folders without images, which is a finding of its own
            splits = load_splits(settings)
        splits.ledger.skip(broken)
        check_enough(splits, settings)
        if settings.tokens is not None:
            texts_of(settings, build_model(settings, len(splits.classes)))
    except UserError as error:
        return Finding("problem", str(error))
    sizes = ", ".join(f"{count} {name}" for name, count in splits.summary()["sizes"].items())
    return Finding("fine", f"{len(splits.classes)} classes; {settings.noun}: {sizes}")


def _broken(images: list[Sample], max_broken: float) -> Finding:
    ledger = ImageLedger()
    ledger.images = len(images)
    ledger.skip(image.fault for image in images if image.fault is not None)
    if not ledger.skipped:
        return Finding("fine", f"all {len(images)} images can be read")
    try:
        ledger.limit(max_broken)
    except DataError as error:
        return Finding("problem", str(error), "mend or remove them, or raise max_broken")
    return Finding("warning", f"of {len(images)} images {ledger}", "mend or remove them; training skips them")


def _odd(whole: list[Sample]) -> Iterator[Finding]:
    """Sizes, and what is converted."""
    if not whole:
        return
    widths, heights = zip(*(image.size for image in whole), strict=True)
    smallest, largest = (pick(image.size for image in whole) for pick in (min, max))
    if smallest == largest:
        yield Finding("fine", f"all images have {widths[0]}x{heights[0]} pixels")
    else:
        middle = f"{median(widths):.0f}x{median(heights):.0f}"
        ranges = f"{min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high"
        yield Finding("fine", f"sizes: {ranges}, median {middle}; use augment resize, as train --data FOLDER does")
    kinds = Counter(kind for image in whole for kind in image.conversions)
    if kinds:
        yield Finding("fine", f"converted when read: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")


def _alike(whole: list[Sample]) -> Iterator[Finding]:
    """Images that look the same and are not: saved anew, or in another size."""
    found = ([whole[k] for k in pair] for pair in alike([image.thumbnail for image in whole]))
    pairs = [
        pair
        for pair in found
        if pair[0].sha256 != pair[1].sha256 and (pair[0].part != pair[1].part or not pair[0].part)
    ]
    if pairs:
        text = f"{len(pairs)} images look like another one that may judge them: {pairs_shown(pairs)}"
        yield Finding("warning", text, "if they are the same picture, results are too good: leave one of them")


def _never_read(root: Path) -> Iterator[Finding]:
    """Folders that are linked, or passed over; files that no suffix marks as images, and links that lead nowhere."""
    if not root.is_dir() or SHARDS.is_at(root):
        return
    entries = list(entries_below(root))
    linked = [entry.path for entry in entries if entry.is_folder and entry.path.is_symlink()]
    if linked:
        yield Finding("fine", f"linked folders, which are followed: {_first(linked)}")
    passed = [entry.path for entry in entries if entry.is_folder and entry.is_passed_over]
    if passed:
        yield Finding("fine", f"folders of systems and tools, and hidden ones, are passed over: {_first(passed)}")
    for folder in _parts(root).values():
        for name, files in without_images(folder).items():
            yield Finding("warning", f"{folder / name} holds no image that can be read, and is no class: {files}")
    others = (entry for entry in entries if not (entry.is_folder or entry.is_image or entry.is_passed_over))
    kinds = Counter(
        entry.path.suffix.lower() or "no suffix" if entry.is_there else "link without a target" for entry in others
    )
    if kinds:
        text = f"files that are never read: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
        yield Finding("warning", text, "convert them if they are images")


def _first(paths: list[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{', '.join(map(str, paths[:SHOWN]))}{more}"
