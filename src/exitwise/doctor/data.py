"""Decodes every image of a data set, and says what is wrong with it and whether training would stop."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

from exitwise.catalogue.sources import SOURCES
from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.data.sources.layout import class_folders, layout_of
from exitwise.doctor import Finding
from exitwise.errors import DataError
from exitwise.runs.build import load_splits
from exitwise.settings.checks import check_data
from exitwise.settings.compose import compose
from exitwise.storage.folders import IMAGE_SUFFIXES, image_files
from exitwise.storage.images import BrokenImageError, read_header, read_pixels

FEW_IMAGES = 10
"""Fewer readable images of a class than this are worth a warning: few are left to calibrate and to test."""

SHOWN = 5


class Image(NamedTuple):
    """A file after decoding.

    Attributes:
        part: ``train``, ``val`` or ``test``; empty if there are no parts.
        name: its class.
        path: the file.
        sha256: of its content; empty if broken.
        size: (width, height); zeros if broken.
        conversions: see :func:`~exitwise.storage.images.read_header`.
        fault: what is wrong with it, if it is broken.
    """

    part: str
    name: str
    path: Path
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    conversions: tuple[str, ...] = ()
    fault: Skipped | None = None


class Examination(NamedTuple):
    """Findings, and all images; none for data sets that are known by name."""

    findings: list[Finding]
    images: list[Image]


def examine_data(
    data: str, max_broken: float, threads: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> Examination:
    """Look over a data set as ``exitwise train --data`` would use it.

    Args:
        data: a data set's name or a folder.
        max_broken: share of the images that may be broken.
        threads: how many images to decode at once.
        progress: called with the numbers of images done and in all.
    """
    try:
        check_data(data)
    except DataError as error:
        return Examination([Finding("problem", str(error))], [])
    if data in SOURCES:
        return Examination([_as_training_sees_it(data)], [])
    images = list(_decoded(_listed(Path(data)), threads, progress))
    whole = [image for image in images if image.fault is None]
    findings = [
        _as_training_sees_it(data),
        _broken(images, max_broken),
        *_odd(whole),
        *_small_classes(images),
        *_twins(whole),
        *_never_read(Path(data)),
    ]
    return Examination(findings, images)


def _listed(root: Path) -> list[Image]:
    """Return the image files of each part and class."""
    try:
        layout = layout_of(root)
    except DataError:  # which is a finding of its own
        layout = None
    parts = {"": root} if layout is None else layout.parts()
    return [
        Image(part, name, path)
        for part, folder in parts.items()
        for name in class_folders(folder)
        for path in image_files(folder / name)
    ]


def _decoded(listed: list[Image], threads: int, progress: Callable[[int, int], None]) -> Iterator[Image]:
    with ThreadPoolExecutor(threads) as pool:
        for done, image in enumerate(pool.map(_decode, listed), start=1):
            progress(done, len(listed))
            yield image


def _decode(image: Image) -> Image:
    try:
        read_pixels(image.path, 3)
        size, conversions = read_header(image.path)
    except BrokenImageError as error:
        return image._replace(fault=Skipped.of(error))
    with image.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return image._replace(sha256=digest, size=size, conversions=conversions)


def _as_training_sees_it(data: str) -> Finding:
    """Return whether the images can be found, divided and held out."""
    try:
        splits = load_splits(compose(None, flags={"data": data}))
    except DataError as error:
        return Finding("problem", str(error))
    sizes = ", ".join(f"{count} {name}" for name, count in splits.summary()["sizes"].items())
    return Finding("fine", f"{len(splits.classes)} classes; images: {sizes}")


def _broken(images: list[Image], max_broken: float) -> Finding:
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


def _odd(whole: list[Image]) -> Iterator[Finding]:
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


def _small_classes(images: list[Image]) -> Iterator[Finding]:
    readable = Counter({(image.part, image.name): 0 for image in images})
    readable.update((image.part, image.name) for image in images if image.fault is None)
    for (part, name), count in sorted(readable.items()):
        where = f" of {part}" if part else ""
        if count == 0 and part in ("", "train"):
            yield Finding("problem", f"class {name!r}{where} has no readable image", "mend some, or remove the class")
        elif count < FEW_IMAGES:
            yield Finding("warning", f"class {name!r}{where} has {count} readable images", "add some")


def _twins(whole: list[Image]) -> Iterator[Finding]:
    """Files of equal content: in several parts, of several classes, or more than once in one folder."""
    groups: dict[str, list[Image]] = defaultdict(list)
    for image in whole:
        groups[image.sha256].append(image)
    twins = [group for group in groups.values() if len(group) > 1]
    across = [group for group in twins if len({image.part for image in group}) > 1]
    contradicting = [group for group in twins if len({image.name for image in group}) > 1]
    inside = [group for group in twins if group not in across and not group[0].part]
    if across:
        text = f"{len(across)} images are in more than one of train, val and test: {_shown(across)}"
        yield Finding("warning", text, "results on them are too good; leave each in one part")
    if inside:
        text = f"{len(inside)} images are there more than once: {_shown(inside)}"
        yield Finding("warning", text, "they may be trained and tested on; leave one of each")
    if contradicting:
        text = f"{len(contradicting)} images are in more than one class: {_shown(contradicting)}"
        yield Finding("warning", text, "leave each in its class")


def _shown(groups: Iterable[list[Image]]) -> str:
    pairs = [" = ".join(str(image.path) for image in group[:2]) for group in groups]
    return "; ".join(pairs[:SHOWN]) + (f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")


def _never_read(root: Path) -> Iterator[Finding]:
    """Files below the classes that no suffix marks as images, and links that lead nowhere."""
    others = (path for path in root.rglob("*") if not path.name.startswith(".") and not path.is_dir())
    kinds = Counter(
        "link without a target" if path.is_symlink() and not path.exists() else path.suffix.lower() or "no suffix"
        for path in others
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES
    )
    if kinds:
        text = f"files that are never read: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
        yield Finding("warning", text, "convert them if they are images")
