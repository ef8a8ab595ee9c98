"""Image files below a folder: links followed, each folder read once, what systems and tools leave there passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from exitwise.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pjpeg", ".png", ".pnm"}
    | {".ppm", ".tif", ".tiff", ".webp"}
)

TOOL_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "lost+found"}
    | {"system volume information"}
)
"""What network drives, archives and systems leave beside images, in small letters."""


class Entry(NamedTuple):
    """A folder or a file below a folder, or a link that leads nowhere, which is not ``there``."""

    path: Path
    is_folder: bool
    is_there: bool = True

    @property
    def is_passed_over(self) -> bool:
        """Whether it is hidden, or of a tool."""
        return is_hidden(self.path.name)

    @property
    def is_image(self) -> bool:
        """Whether it is a file whose suffix says so."""
        return self.is_there and not self.is_folder and self.path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or a tool's."""
    return name.startswith(".") or name.lower() in TOOL_FOLDERS


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, by their suffix, sorted."""
    return sorted(entry.path for entry in entries_below(folder) if entry.is_image and not entry.is_passed_over)


def has_images(folder: Path) -> bool:
    """Return whether there are image files below a folder."""
    return any(entry.is_image and not entry.is_passed_over for entry in entries_below(folder))


def sub_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not passed over, sorted."""
    found = (Path(each.path) for each in os.scandir(folder) if each.is_dir() and not is_hidden(each.name))
    return sorted(found)


def entries_below(folder: Path) -> Iterator[Entry]:
    """Yield what is below a folder, but not below hidden and tools' folders. Links are followed.

    A folder is read once, under its own name where it has one here, so that links in a circle end and no image is there
    twice. A link to a folder that this one lies in is not followed.
    """
    if not folder.is_dir():
        return
    real = folder.resolve()
    yield from _below(folder, {real, *real.parents})


def _below(folder: Path, read: set[Path]) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise DataError(f"expected to read the folder {folder}; {error.strerror or error}") from error
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir():
            if entry.is_file() or entry.is_symlink():
                yield Entry(path, False, entry.is_file())
            continue
        yield Entry(path, True)
        real = path.resolve()
        if not is_hidden(entry.name) and real not in read:
            read.add(real)
            yield from _below(path, read)
