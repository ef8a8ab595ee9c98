"""skipped_images.csv: the broken image files that commands on a run have come upon."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from exitwise.data.ledger import Skipped
from exitwise.errors import UserError
from exitwise.storage.files import to_csv, write_text

SKIPPED = "skipped_images.csv"


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write the table into a run folder."""
    write_text(folder / SKIPPED, to_csv(Skipped._fields, skipped))


def read_skipped(folder: Path) -> list[Skipped]:
    """Return the broken images that the table of a run folder lists; none if it is not there.

    Raises:
        UserError: if it is another file.
    """
    path = folder / SKIPPED
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            fields, *rows = [tuple(row) for row in csv.reader(file)] or [()]
    except csv.Error:
        fields, rows = (), []
    if fields != Skipped._fields or any(len(row) != len(fields) for row in rows):
        raise UserError(f"expected a table of {', '.join(Skipped._fields)} in {path}; got something else")
    return [Skipped(*row) for row in rows]
