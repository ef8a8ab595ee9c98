"""Files: text and JSON that are written whole or not at all. Needs no torch."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from exitwise.errors import ExitwiseWarning, UserError


def check_output(path: Path, overwrite: bool) -> None:
    """Raise UserError where a file to be written would replace another, unless that is wished, or a folder."""
    if path.is_dir():
        raise UserError(f"expected a file to write; {path} is a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give --overwrite to replace it")
    if why := why_not_written(path.parent):
        raise UserError(f"expected a place to write {path.name}; {path.parent} is none: {why}")


def why_not_written(folder: Path) -> str | None:
    """Return why no file can be written into a folder, or into what it will be made in; None if one can."""
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


class NotStored(ExitwiseWarning):
    """Results that could not be written, and are only returned."""


def warn_of(folder: Path) -> bool:
    """Return whether results can be written into a folder; raise a :class:`NotStored` warning if not, before they are
    measured."""
    why = why_not_written(folder)
    if why is not None:
        warnings.warn(f"{folder} cannot be written to ({why}): results are not stored", NotStored, stacklevel=3)
    return why is None


def store(write: Callable[[], None], folder: Path) -> bool:
    """Write results that took long to measure, and return whether they are; a :class:`NotStored` warning says where
    that fails."""
    try:
        write()
        return True
    except OSError as error:
        why = error.strerror or str(error)
        warnings.warn(f"results could not be stored in {folder}: {why}", NotStored, stacklevel=3)
        return False


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of a text in UTF-8; names of files that are not UTF-8 stay as they are."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, then rename, making its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_csv(fields: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as CSV with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([fields, *rows])
    return text.getvalue()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected JSON at {path}; {error}") from error
