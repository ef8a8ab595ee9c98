"""Folders of images, in one folder per class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.files import FileSource, Labelled, kept_or_read
from exitwise.data.sources.layout import check_classes, class_folders, layout_of
from exitwise.errors import DataError, ExitwiseWarning
from exitwise.storage.folders import entries_below, image_files, sub_folders


class FolderSource(FileSource):
    """Images in one folder per class, read from disk when asked for.

    Args:
        root: the folder that holds one folder per class.
        channels: 1 or 3; images of other modes are converted.
        image_size: the side that all images must have; None for any size.
        classes: the class names to use, in order; by default the sorted names of the sub-folders.
        ledger: the account to enter the images in.

    Raises:
        DataError: without classes or images, or for images of another size.
    """

    def __init__(
        self,
        root: Path,
        channels: int,
        image_size: int | None = None,
        classes: Sequence[str] | None = None,
        ledger: ImageLedger | None = None,
    ) -> None:
        found = class_folders(root)
        if classes is None:
            check_classes(root, found)
        elif not found:
            raise DataError(f"expected a folder per class with images in {root}; found none")
        names = list(classes) if classes is not None else found
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise DataError(f"expected the classes of the training images in {root}; got the unknown {unknown[0]!r}")
        images = [
            Labelled(path, target, path.relative_to(root).as_posix())
            for target, name in enumerate(names)
            for path in image_files(root / name)
        ]
        super().__init__(images, names, channels, image_size, ledger)


def open_folder(request: Request) -> Sources:
    """Return the images of a folder: either folders of parts, such as ``train``, ``val`` and ``test``, or a folder per
    class.

    Raises:
        DataError: if there is nothing in it, or images are of another size.
    """
    root = Path(request.data)

    def source(folder: Path, classes: Sequence[str] | None = None) -> Source:
        found = FolderSource(folder, request.channels, request.image_size, classes, request.ledger)
        for name, kinds in without_images(folder).items():
            warnings.warn(
                f"{folder / name} holds no image that can be read, and is no class: {kinds}",
                ExitwiseWarning,
                stacklevel=5,
            )
        return kept_or_read(found, request.image_size)

    layout = layout_of(root)
    if layout is None:
        return Sources(source(root), None, None)
    train = source(layout.train)
    val, test = (None if part is None else source(part, train.classes) for part in (layout.val, layout.test))
    # With val alone, as in ImageNet's layout, its images are what everyone tests on.
    return Sources(train, val if test else None, test or val)


def without_images(root: Path) -> dict[str, str]:
    """Return, of each sub-folder that holds files but no image, by name, how many of which kind: ``20 .heic``."""
    found = {}
    for folder in sub_folders(root):
        entries = [
            entry
            for entry in entries_below(folder)
            if not entry.is_folder and not entry.is_passed_over and entry.is_there
        ]
        if entries and not any(entry.is_image for entry in entries):
            kinds = Counter(entry.path.suffix.lower() or "no suffix" for entry in entries)
            found[folder.name] = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return found
