"""Tables in CSV, TSV and Parquet, read line by line."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.errors import DataError


def column_of(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Return the first column that is called, in any case, by one of these names."""
    return next((name for each in known for name in names if str(name).strip().lower() == each), None)


def read_table(
    path: Path, wanted: Collection[str], what: str
) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Return the names of the columns, and the values of each line, by name.

    Args:
        path: of a table in CSV, TSV or Parquet.
        wanted: names of columns, in small letters, that are read where others need not be.
        what: the table is of, for errors.

    Raises:
        DataError: if it cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path, wanted)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        with _long_fields():
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"expected a table of {what} at {path}; {error}") from error
    if long := next((line for line, row in rows if None in row), None):
        raise DataError(f"expected {len(reader.fieldnames or ())} values in line {long} of {path}; got more")
    return list(reader.fieldnames or ()), iter(rows)


def _parquet(path: Path, wanted: Collection[str]) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    with needing_extras("a table in Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        names = pyarrow.parquet.read_schema(path).names
        table = pyarrow.parquet.read_table(path, columns=[name for name in names if name.lower() in wanted])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"expected a table in Parquet at {path}; {str(error).splitlines()[0]}") from error
    return names, iter(enumerate(table.to_pylist(), start=1))


def text_of(value: Any) -> str | None:
    """Return a value as text, None for an empty one."""
    if isinstance(value, (dict, list, bytes)):
        raise DataError(f"expected texts or numbers as values of a table; got {type(value).__name__}")
    if value is None or value != value or not str(value).strip():
        return None
    return str(value).strip()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let values in CSV be of any length within this context."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
