"""Tables of images and labels, in CSV or Parquet: a row per image, with its split and its group if they are given."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.catalogue.extras import needing_extras
from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.files import FileSource, Labelled, kept_or_read
from exitwise.data.sources.labels import SEVERAL, class_names, numbered
from exitwise.data.sources.layout import KINDS
from exitwise.errors import DataError

COLUMNS = {
    "image": ("image", "file", "path", "filename", "file_name", "image_path", "filepath"),
    "label": ("label", "class", "target", "category"),
    "split": ("split", "set", "part"),
    "group": ("group", "patient", "patient_id", "group_id"),
}
"""What columns may be called, in any case; of several the first. Those of image and label are needed."""

_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
SHOWN = 3


class Row(NamedTuple):
    """A row: where it stands, and its values; None for those that are not given."""

    line: int
    image: str
    label: str
    split: str | None
    group: str | None


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
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"expected rows of images and labels in {path}; found none")
    _check_once(path, rows)
    _check_groups(path, rows)
    parts = {part: [row for row in rows if (row.split or "train") == part] for part in KINDS}
    if not parts["train"]:
        raise DataError(f"expected rows of split train in {path}; found none")
    known = list(classes) if classes is not None else class_names(path, _places(parts["train"]))
    numbers = numbered(path, _places(rows), known)
    return Manifest(
        known,
        {
            part: [Labelled(path.parent / row.image, numbers[row.label], row.image, row.group) for row in mine]
            for part, mine in parts.items()
            if mine
        },
    )


def _rows(path: Path) -> Iterator[Row]:
    names, lines = _table(path)
    found: dict[str, str | None] = {}
    for role, known in COLUMNS.items():
        found[role] = next((name for each in known for name in names if str(name).strip().lower() == each), None)
    for role in ("image", "label"):
        if found[role] is None:
            if role == "image" and any(str(name).lower() == "text" for name in names):
                raise DataError(f"expected a column of images in {path}; it has one of texts, which are no images")
            raise DataError(
                f"expected a column {' or '.join(COLUMNS[role])} in {path}; got {', '.join(map(str, names))}"
            )
    for line, values in lines:
        if isinstance(values.get(str(found["label"])), list):
            raise DataError(f"expected one label in line {line} of {path}; got {SEVERAL}")
        given = {role: None if name is None else _text(values.get(name)) for role, name in found.items()}
        for role, value in given.items():
            if value is None and found[role] is not None:
                raise DataError(f"expected a value for {found[role]} in line {line} of {path}; it is empty")
        split = given["split"]
        if split is not None:
            if split.lower() not in _KIND_OF:
                raise DataError(f"expected splits {', '.join(_KIND_OF)} in {path}; got {split!r} (line {line})")
            split = _KIND_OF[split.lower()]
        yield Row(line, str(given["image"]), str(given["label"]), split, given["group"])


def _table(path: Path) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Return the names of the columns, and the values of each line, by name."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        reader = csv.DictReader(
            text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
        )
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"expected a table of images and labels at {path}; {error}") from error
    if long := next((line for line, row in rows if None in row), None):
        raise DataError(f"expected {len(reader.fieldnames or ())} values in line {long} of {path}; got more")
    return list(reader.fieldnames or ()), iter(rows)


def _parquet(path: Path) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    with needing_extras("a table in Parquet"):
        import pyarrow
        import pyarrow.parquet
    wanted = {name for names in COLUMNS.values() for name in names} | {"text"}
    try:
        names = pyarrow.parquet.read_schema(path).names
        table = pyarrow.parquet.read_table(path, columns=[name for name in names if name.lower() in wanted])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"expected a table in Parquet at {path}; {str(error).splitlines()[0]}") from error
    return names, iter(enumerate(table.to_pylist(), start=1))


def _text(value: Any) -> str | None:
    """Return a value as text, None for an empty one."""
    if isinstance(value, (dict, list, bytes)):
        raise DataError(f"expected texts or numbers as values of a table; got {type(value).__name__}")
    if value is None or value != value or not str(value).strip():
        return None
    return str(value).strip()


def _places(rows: Sequence[Row]) -> dict[str, str]:
    """Return where each label stands first."""
    return {row.label: f"line {row.line}" for row in reversed(rows)}


def _check_once(path: Path, rows: Sequence[Row]) -> None:
    """Raise DataError for an image that is missing, or there twice."""
    lines: dict[str, int] = {}
    for row in rows:
        if row.image in lines:
            raise DataError(
                f"expected each image once in {path}; {row.image} is in lines {lines[row.image]} and {row.line}"
            )
        lines[row.image] = row.line
    missing = [row for row in rows if not (path.parent / row.image).is_file()]
    if missing:
        first = ", ".join(f"{row.image} (line {row.line})" for row in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise DataError(f"expected the {len(rows)} images that {path} names; {len(missing)} are missing: {first}{more}")


def _check_groups(path: Path, rows: Sequence[Row]) -> None:
    """Raise DataError for a group in several splits."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.group is not None and row.split is not None and seen.setdefault(row.group, row.split) != row.split:
            raise DataError(
                f"expected each group in one split of {path}; {row.group} is in {seen[row.group]} and {row.split}"
            )
