"""images.csv.gz: each image file that a run was made with, by name, so that it can be said which ones have changed."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from exitwise.data import Split, Splits
from exitwise.data.sources.texts import TextSource
from exitwise.errors import UserError
from exitwise.shown import Noun
from exitwise.storage.files import to_csv, write_bytes

KNOWN = "images.csv.gz"
FIELDS = ("part", "name", "label", "stamp")
SHOWN = 3
STAMP = 16
"""Characters of an image's stamp that are kept."""

Rows = dict[tuple[str, str], tuple[str, str]]
"""By part and name: label and stamp."""


def write_known(folder: Path, splits: Splits) -> None:
    """Write the list into a run folder; of images that come from no files of a user there is none."""
    if not _is_listed(splits):
        (folder / KNOWN).unlink(missing_ok=True)
        return
    table = to_csv(FIELDS, ((*key, *value) for key, value in _rows(splits).items()))
    write_bytes(folder / KNOWN, gzip.compress(table.encode(errors="surrogateescape"), mtime=0))


def read_known(folder: Path) -> Rows:
    """Return the images of a run by part and name; none if there is no list.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / KNOWN
    if not path.is_file():
        return {}
    try:
        text = gzip.decompress(path.read_bytes()).decode(errors="surrogateescape")
        fields, *rows = csv.reader(io.StringIO(text, newline=""))
        if tuple(fields) != FIELDS:
            raise ValueError("it has other columns")
        return {(part, name): (label, stamp) for part, name, label, stamp in rows}
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise UserError(f"expected a list of images in {path}; {error}") from error


def changes(folder: Path, splits: Splits, noun: Noun) -> str:
    """Return how samples differ from those of a run: ``the images have changed: 2 gone (a/1.png, a/2.png)``."""
    known, now = read_known(folder), _rows(splits) if _is_listed(splits) else {}
    changed = f"the {noun} have changed"
    if not known or not now:
        return changed
    before, after = ({name: each for (_, name), each in rows.items()} for rows in (known, now))
    differing = {
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
        "with other content": [name for name in after if name in before and after[name] != before[name]],
    }
    if not any(differing.values()):
        differing = {"in another part": [name for part, name in now if (part, name) not in known]}
    said = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in differing.items()
        if names
    ]
    return f"{changed}: {', '.join(said)}" if said else changed


def known_to(folder: Path, split: Split) -> dict[str, list[str]]:
    """Return which images of a split a run knows, by its own part; none if there is no list.

    Where their stamps are of what they hold (:meth:`~exitwise.data.sources.Source.stamp`), as those of texts and of
    images in memory are, they are known whatever they are called; else by name and size.
    """
    parts = {_known_by(name, stamp): part for (part, name), (_, stamp) in read_known(folder).items()}
    found: dict[str, list[str]] = {}
    for name, stamp in _named(split):
        part = parts.get(_known_by(name, stamp))
        if part is not None:
            found.setdefault(part, []).append(name)
    return found


def _known_by(name: str, stamp: str) -> tuple[str, str]:
    is_digest = len(stamp) == STAMP
    return "" if is_digest else name, stamp


def _is_listed(splits: Splits) -> bool:
    """Return whether samples come from a user's files: images, or the lines of a table of texts."""
    return bool(splits.ledger.images) or isinstance(splits.train.source, TextSource)


def _rows(splits: Splits) -> Rows:
    parts = {"train": splits.train, "calibration": splits.calibration, "test": splits.test}
    return {
        (part, name): (splits.classes[target], stamp)
        for part, split in parts.items()
        for (name, stamp), target in zip(_named(split), split.targets.tolist(), strict=True)
    }


def _named(split: Split) -> Iterator[tuple[str, str]]:
    """Yield name and stamp of each image."""
    for index in split.indices.tolist():
        yield split.source.names[index], split.source.stamp(index)[:STAMP]
