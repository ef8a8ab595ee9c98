"""Tables that are long in the making: rows are kept as they come, and become a file once all are there.

Until then they lie beside it as JSON lines, under a first line that says what they are of. So a table that was stopped
goes on, with no row lost or doubled, and what is there under its own name is whole.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from exitwise.catalogue.extras import needing_extras
from exitwise.errors import UserError
from exitwise.storage.files import check_output

PARTIAL = ".partial"
CHUNK = 10_000
"""Rows at a time into Parquet."""

Row = dict[str, Any]


class GrowingTable:
    """A table in the making.

    Args:
        path: where it will be: a name that ends in one of :data:`FORMATS`.
        fields: its columns.
        of: what it is made of, as plain values; rows that are there go on only if it is the same.
        overwrite: whether it may replace a file, and rows that are there are forgotten.

    Attributes:
        there: rows from before.

    Raises:
        UserError: for another ending, a file that is there, or rows of something else.
    """

    def __init__(self, path: Path, fields: Sequence[str], of: Any, overwrite: bool = False) -> None:
        check_table(path, overwrite)
        self.path, self.fields = path, list(fields)
        self.partial = path.with_name(path.name + PARTIAL)
        self._head = json.loads(json.dumps({"of": of, "fields": self.fields}))
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self.partial.unlink(missing_ok=True)
        self._file = self.partial.open("ab+")
        try:
            self.there = self._resumed()
        except BaseException:
            self._file.close()
            raise
        if not self._file.tell():
            self._file.write(json.dumps(self._head).encode() + b"\n")

    def _resumed(self) -> int:
        """Return how many whole rows are there; what was half written is cut off."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"expected one process to write {self.path}; another one does") from error
        whole, lines = 0, 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if not lines and _parsed(line) != self._head:
                raise UserError(
                    f"{self.partial} holds rows of another bundle, other files or other options: remove it, or give "
                    "--overwrite"
                )
            whole += len(line)
            lines += 1
        self._file.truncate(whole)
        self._file.seek(whole)
        return max(lines - 1, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()

    def rows(self) -> Iterator[Row]:
        """Return the rows that are there."""
        with self.partial.open(encoding="utf-8") as lines:
            next(lines, None)
            for line in lines:
                yield json.loads(line)

    def forget(self) -> None:
        """Keep no rows."""
        self.partial.unlink()

    def finish(self) -> None:
        """Write the table, under its own name once it is whole."""
        self._file.flush()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        os.close(descriptor)
        try:
            FORMATS[self.path.suffix](Path(temporary), self.fields, self.rows())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._file.close()
        self.partial.unlink()


def check_table(path: Path, overwrite: bool) -> None:
    """Raise UserError unless a table can be written at a path."""
    if path.suffix not in FORMATS:
        raise UserError(f"expected an output file that ends in {' or '.join(FORMATS)}; got {path}")
    check_output(path, overwrite)
    if path.suffix == ".parquet":
        _arrow()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def write_csv(file: IO[str], fields: Sequence[str], rows: Iterable[Row], header: bool = True) -> None:
    """Write rows as CSV."""
    writer = csv.DictWriter(file, fields, lineterminator="\n", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)


def _csv(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write_csv(file, fields, rows)


def _jsonl(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _json(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(("," if number else "[") + "\n  " + json.dumps(row, indent=2).replace("\n", "\n  "))
        file.write("\n]\n")


def schema_of(fields: Sequence[str]) -> Any:
    """Return the types of columns, for Arrow."""
    arrow, _ = _arrow()
    types = {"confidence": "float32", "exit": "int64", "compute": "float64"}
    return arrow.schema(
        [
            (name, arrow.type_for_alias(types.get(name, "float32" if name.startswith("probability") else "string")))
            for name in fields
        ]
    )


def _parquet(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    arrow, parquet = _arrow()
    schema = schema_of(fields)
    with parquet.ParquetWriter(path, schema) as writer:
        chunk: list[Row] = []
        for row in rows:
            chunk.append({name: text_of(row.get(name)) for name in fields})
            if len(chunk) == CHUNK:
                writer.write_table(arrow.Table.from_pylist(chunk, schema))
                chunk = []
        writer.write_table(arrow.Table.from_pylist(chunk, schema))


def text_of(value: Any) -> Any:
    """Return a text that is not UTF-8 as one that is; other values as they are."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _arrow() -> tuple[Any, Any]:
    with needing_extras("Parquet"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


FORMATS: dict[str, Callable[[Path, Sequence[str], Iterable[Row]], None]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
