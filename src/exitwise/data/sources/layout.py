"""Which folders of a data set hold images to train on, to validate on and to test on, told by their names.

A folder is a part if its name says so and it holds a folder per class; a class may be called ``train``. What looks like
parts and cannot be used as such is refused, as it would be learned to tell the parts apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from exitwise.errors import DataError
from exitwise.storage.folders import has_images, sub_folders

KINDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What parts are called, in any case and within longer names such as ``seg_train`` or ``val2017``."""

_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = re.compile(rf"(?<![^\W\d_])({'|'.join(sorted(_KIND_OF, key=len, reverse=True))})(?![^\W\d_])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Layout(NamedTuple):
    """The folders of a data set's parts, each with a folder per class; None for those that it has not."""

    train: Path
    val: Path | None
    test: Path | None

    def parts(self) -> dict[str, Path]:
        """Return the folder of each part that is there, by ``train``, ``val`` and ``test``."""
        return {name: folder for name, folder in self._asdict().items() if folder is not None}


class _Named(NamedTuple):
    folder: Path
    kind: str
    rest: str


def class_folders(root: Path) -> list[str]:
    """Return the names of the sub-folders that hold images, sorted."""
    return [folder.name for folder in sub_folders(root) if has_images(folder)]


def layout_of(root: Path) -> Layout | None:
    """Return the parts of a data set; None for a folder per class.

    Raises:
        DataError: for parts that cannot be used.
    """
    folders = [root / name for name in class_folders(root)]
    named = [found for folder in folders if (found := _named(folder))]
    kinds = {each.rest: {other.kind for other in named if other.rest == each.rest} for each in named}
    alike = {rest for rest, each in kinds.items() if len(each) > 1}
    parts = named if len(named) == len(folders) else [each for each in named if not each.rest or each.rest in alike]
    holding = [each for each in parts if class_folders(each.folder)]
    if not parts or (not holding and len(parts) < len(folders)):
        return None
    by_kind = {kind: [each.folder for each in parts if each.kind == kind] for kind in KINDS}
    names = ", ".join(each.folder.name for each in parts)
    for each in parts:
        if each not in holding:
            raise DataError(f"expected a folder per class in {each.folder}, as in {names}; it holds images alone")
    for kind, several in by_kind.items():
        if len(several) > 1:
            both = " and ".join(folder.name for folder in several)
            raise DataError(f"expected one folder of {kind} images in {root}; got {both}")
    train, val, test = (_innermost(by_kind[kind][0]) if by_kind[kind] else None for kind in KINDS)
    if train is None:
        raise DataError(f"expected a folder train beside {names} in {root}; found none")
    if val is None and test is None:
        raise DataError(f"expected a folder test or val beside {train}; found neither")
    return Layout(train, val, test)


def check_classes(root: Path, found: Sequence[str]) -> None:
    """Raise DataError unless there are two classes at least in a folder."""
    if not found:
        raise DataError(f"expected a folder per class with images in {root}; found none")
    if len(found) < 2:
        deeper = class_folders(root / found[0])
        hint = f" (give {root / found[0]}, which holds {', '.join(deeper[:3])}?)" if len(deeper) > 1 else ""
        raise DataError(f"expected at least two class folders with images in {root}; found only {found[0]!r}{hint}")


def kind_of(name: str) -> str | None:
    """Return which part a name says that a file or folder is of, ``train``, ``val`` or ``test``; None if none."""
    found = _named(Path(name))
    return None if found is None else found.kind


def _named(folder: Path) -> _Named | None:
    """Return what kind of part a folder's name is of, and the rest of the name; None if it is of none."""
    name = _HUMP.sub("_", folder.name).casefold()
    word = _WORD.search(name)
    return (
        None
        if word is None
        else _Named(folder, _KIND_OF[word[1]], (name[: word.start()] + "|" + name[word.end() :]).strip("|"))
    )


def _innermost(part: Path) -> Path:
    """Return a part's folder, or the only one in it if that is called like a part too, as ``seg_train/seg_train``."""
    inside = class_folders(part)
    if len(inside) == 1 and _named(part / inside[0]) and class_folders(part / inside[0]):
        return _innermost(part / inside[0])
    return part
