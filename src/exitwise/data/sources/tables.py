"""Rows of tables, in CSV or Parquet, that name samples and their labels, with splits and groups if they are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from exitwise.catalogue.sources import COLUMNS
from exitwise.data.sources.labels import SEVERAL
from exitwise.data.sources.layout import KINDS
from exitwise.errors import DataError
from exitwise.storage.tables import column_of, read_table, text_of

_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}


class Row(NamedTuple):
    """A row: where it stands, and its values; None for those that are not given.

    ``content`` is an image's path or a text.
    """

    line: int
    content: str
    label: str
    split: str | None
    group: str | None


def read_parts(path: Path, role: str) -> dict[str, list[Row]]:
    """Return the rows of each part that is there, by ``train``, ``val`` and ``test``.

    Args:
        path: of a table in CSV, TSV or Parquet.
        role: of its content, ``image`` or ``text``.

    Raises:
        DataError: for missing columns or values, splits of unknown names, a group in several splits, or no rows to
            train on.
    """
    rows = list(_read_rows(path, role))
    if not rows:
        raise DataError(f"expected rows of {role}s and labels in {path}; found none")
    _check_groups(path, rows)
    parts = {part: [row for row in rows if (row.split or "train") == part] for part in KINDS}
    if not parts["train"]:
        raise DataError(f"expected rows of split train in {path}; found none")
    return {part: mine for part, mine in parts.items() if mine}


def _read_rows(path: Path, role: str) -> Iterator[Row]:
    roles = (role, "label", "split", "group")
    wanted = {name for each in roles for name in COLUMNS[each]}
    names, lines = read_table(path, wanted, f"{role}s and labels")
    found = {each: column_of(names, COLUMNS[each]) for each in roles}
    for each in (role, "label"):
        if found[each] is None:
            if each == "image" and column_of(names, COLUMNS["text"]) is not None:
                raise DataError(f"expected a column of images in {path}; it has one of texts, which are no images")
            raise DataError(
                f"expected a column {' or '.join(COLUMNS[each])} in {path}; got {', '.join(map(str, names))}"
            )
    for line, values in lines:
        if isinstance(values.get(str(found["label"])), list):
            raise DataError(f"expected one label in line {line} of {path}; got {SEVERAL}")
        given = {each: None if name is None else text_of(values.get(name)) for each, name in found.items()}
        for each, value in given.items():
            if value is None and found[each] is not None:
                raise DataError(f"expected a value for {found[each]} in line {line} of {path}; it is empty")
        split = given["split"]
        if split is not None:
            if split.lower() not in _KIND_OF:
                raise DataError(f"expected splits {', '.join(_KIND_OF)} in {path}; got {split!r} (line {line})")
            split = _KIND_OF[split.lower()]
        yield Row(line, str(given[role]), str(given["label"]), split, given["group"])


def places(rows: Sequence[Row]) -> dict[str, str]:
    """Return where each label stands first."""
    return {row.label: f"line {row.line}" for row in reversed(rows)}


def _check_groups(path: Path, rows: Sequence[Row]) -> None:
    """Raise DataError for a group in several splits."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.group is not None and row.split is not None and seen.setdefault(row.group, row.split) != row.split:
            raise DataError(
                f"expected each group in one split of {path}; {row.group} is in {seen[row.group]} and {row.split}"
            )
