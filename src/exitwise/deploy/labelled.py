"""Labelled images and texts, found where a bundle's are looked for. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.catalogue.sources import COLUMNS
from exitwise.errors import DataError
from exitwise.storage.folders import image_files, sub_folders
from exitwise.storage.tables import column_of, read_table, text_of


class Labelled(NamedTuple):
    """A sample: its name, an image's path or a text, the index of its class, and what it is known by."""

    name: str
    content: Any
    label: int
    known_by: tuple[str, int, str]


def labelled_images(data: Path, classes: Sequence[str]) -> Iterator[Labelled]:
    """Yield the images of a folder per class.

    Raises:
        DataError: for a folder of no such class, or without images.
    """
    names = [folder.name for folder in sub_folders(data)] if data.is_dir() else []
    if not names:
        raise DataError(f"expected a folder per class with images at {data}; found none")
    _check_known(names, classes, data)
    for name in names:
        label = list(classes).index(name)
        for path in image_files(data / name):
            yield Labelled(str(path), path, label, (str(path.relative_to(data)), label, str(path.stat().st_size)))


def labelled_texts(data: Path, classes: Sequence[str]) -> Iterator[Labelled]:
    """Yield the texts of a table.

    Raises:
        DataError: for a table without a text and a label, of a class that is known, in each line.
    """
    if not data.is_file():
        raise DataError(f"expected a table of texts and labels at {data}; found none")
    wanted = {role: COLUMNS[role] for role in ("text", "label")}
    names, lines = read_table(data, {name for each in wanted.values() for name in each}, "texts and labels")
    columns = {role: column_of(names, known) for role, known in wanted.items()}
    for role, column in columns.items():
        if column is None:
            raise DataError(
                f"expected a column {' or '.join(wanted[role])} in {data}; got {', '.join(map(str, names))}"
            )
    for line, row in lines:
        text, label = (text_of(row.get(str(columns[role]))) for role in wanted)
        if text is None or label is None:
            missing = "text" if text is None else "label"
            raise DataError(f"expected a text and a label in line {line} of {data}; it has no {missing}")
        _check_known([label], classes, data)
        number = list(classes).index(label)
        yield Labelled(
            f"line {line}", text, number, (f"line {line}", number, hashlib.sha256(text.encode()).hexdigest())
        )


def _check_known(labels: Sequence[str], classes: Sequence[str], data: Path) -> None:
    if unknown := next((label for label in labels if label not in classes), None):
        raise DataError(f"expected the classes of the bundle in {data}; got the unknown {unknown!r}")
