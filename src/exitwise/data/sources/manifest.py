"""Tables of images and labels: a row per image, with its split and its group if they are given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.files import FileSource, Labelled, kept_or_read
from exitwise.data.sources.labels import class_names, numbered
from exitwise.data.sources.tables import Row, places, read_parts
from exitwise.errors import DataError

SHOWN = 3


class Manifest(NamedTuple):
    """A table: its class names, in order, and the images of each part, by ``train``, ``val`` and ``test``."""

    classes: list[str]
    parts: dict[str, list[Labelled]]


def open_manifest(request: Request) -> Sources:
    """Return the images that a table names; paths in it are from its own folder.

    Raises:
        DataError: for a table that cannot be used.
    """
    classes, parts = read_manifest(Path(request.data))

    def source(part: str) -> Source | None:
        if part not in parts:
            return None
        found = FileSource(parts[part], classes, request.channels, request.image_size, request.ledger)
        return kept_or_read(found, request.image_size)

    train, val, test = source("train"), source("val"), source("test")
    assert train is not None
    return Sources(train, val if test else None, test or val)


def read_manifest(path: Path, classes: Sequence[str] | None = None) -> Manifest:
    """Read a table.

    Args:
        path: of the table, in CSV, TSV or Parquet.
        classes: the class names to use, in order; by default those of the images to train on, numbers in their order.

    Raises:
        DataError: for missing columns, values or files, labels of mixed kinds or, beyond training, of unknown classes,
            splits of unknown names, an image that is there twice, or a group in several splits.
    """
    parts = read_parts(path, "image")
    rows = sorted(chain.from_iterable(parts.values()))
    _check_once(path, rows)
    known = list(classes) if classes is not None else class_names(path, places(parts["train"]))
    numbers = numbered(path, places(rows), known)
    return Manifest(
        known,
        {
            part: [Labelled(path.parent / row.content, numbers[row.label], row.content, row.group) for row in mine]
            for part, mine in parts.items()
        },
    )


def _check_once(path: Path, rows: Sequence[Row]) -> None:
    """Raise DataError for an image that is missing, or there twice."""
    lines: dict[str, int] = {}
    for row in rows:
        if row.content in lines:
            raise DataError(
                f"expected each image once in {path}; {row.content} is in lines {lines[row.content]} and {row.line}"
            )
        lines[row.content] = row.line
    missing = [row for row in rows if not (path.parent / row.content).is_file()]
    if missing:
        first = ", ".join(f"{row.content} (line {row.line})" for row in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise DataError(f"expected the {len(rows)} images that {path} names; {len(missing)} are missing: {first}{more}")
