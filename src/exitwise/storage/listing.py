"""Which images or texts a call names: files, folders, lists, shards, tables, or what is in memory. Reads no image."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.catalogue.sources import COLUMNS as SOURCE_COLUMNS
from exitwise.errors import DataError, UserError
from exitwise.storage.folders import IMAGE_SUFFIXES, image_files
from exitwise.storage.images import ImageLike
from exitwise.storage.tables import column_of, read_table, text_of

COLUMNS = ("file", "path", "image", "filename")
"""Of a list of files in CSV: the first of these that it has."""


TEXT_FILES = (".csv", ".tsv", ".parquet", ".txt")
"""Suffixes of what may hold many texts."""


class Member(NamedTuple):
    """A file within a shard, which is not unpacked."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return its content."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Listed(NamedTuple):
    """An image or a text, and what an answer calls it."""

    name: str
    image: ImageLike | Member

    def content(self) -> ImageLike:
        """Return what a reader of images takes."""
        return self.image.read() if isinstance(self.image, Member) else self.image


def listed(files: Any) -> list[Listed]:
    """Return the images of a call, in order: files; those in folders, in lists (``.csv`` with a column ``file``, or
    ``.txt``, a file per line, from the list's own folder) and in shards (``.tar``); what is no path, such as the bytes
    of an image, as it is.

    Raises:
        UserError: without any, or for a path that is not there, or holds none.
    """
    alone = isinstance(files, (str, PathLike, bytes)) or hasattr(files, "read") or hasattr(files, "dtype")
    given = [files] if alone else list(files)
    if not given:
        raise UserError("expected image files or folders to classify; got none")
    images: list[Listed] = []
    for each in given:
        if isinstance(each, (str, PathLike)):
            images += _at(Path(each))
        else:
            images.append(Listed(str(getattr(each, "name", f"image {len(images) + 1}")), each))
    return images


def listed_texts(texts: Any) -> list[Listed]:
    """Return the texts of a call, in order: those in tables with a column of texts (``.csv``, ``.tsv``, ``.parquet``)
    and in files of a text per line (``.txt``); what is no such path is a text itself.

    Raises:
        UserError: without any.
        DataError: for a path that is not there, or holds none.
    """
    given = [texts] if isinstance(texts, (str, PathLike)) else list(texts)
    if not given:
        raise UserError("expected texts to classify; got none")
    found: list[Listed] = []
    for each in given:
        if not isinstance(each, (str, PathLike)):
            raise UserError(f"expected texts, or files of them; got {type(each).__name__}")
        if isinstance(each, str) and Path(each).suffix.lower() not in TEXT_FILES:
            found.append(Listed(f"text {len(found) + 1}", each))
            continue
        read = list(_texts_in(Path(each)))
        if not read:
            raise DataError(f"expected texts in {each}; found none")
        found += read
    return found


def _texts_in(path: Path) -> Iterable[Listed]:
    if not path.is_file():
        raise DataError(f"expected a file of texts at {path}; found nothing")
    if path.suffix.lower() not in TEXT_FILES:
        raise DataError(f"expected texts in a file {', '.join(TEXT_FILES)}; got {path}")
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        return [Listed(f"{path}:{k}", line.strip()) for k, line in enumerate(lines, start=1) if line.strip()]
    names, rows = read_table(path, SOURCE_COLUMNS["text"], "texts")
    column = column_of(names, SOURCE_COLUMNS["text"])
    if column is None:
        wanted = " or ".join(SOURCE_COLUMNS["text"])
        raise DataError(f"expected a column {wanted} in {path}; got {', '.join(map(str, names))}")
    return [Listed(f"{path}:{line}", text_of(row.get(column)) or "") for line, row in rows]


def _at(path: Path) -> Iterable[Listed]:
    if path.is_dir():
        found: Iterable[Listed] = (_named(file) for file in image_files(path))
    elif not path.is_file():
        raise DataError(f"expected an image or a folder at {path}; found nothing")
    elif path.suffix.lower() == ".tar":
        found = _in_shard(path)
    elif path.suffix.lower() in (".csv", ".txt"):
        found = (_named(path.parent / name) for name in _in_list(path))
    else:
        return [_named(path)]
    images = list(found)
    if not images:
        raise DataError(f"expected images in {path}; found none")
    return images


def _named(path: Path) -> Listed:
    return Listed(str(path), path)


def _in_list(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"expected a list of files at {path}; {error}") from error
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(text.splitlines())
    column = next((name for name in COLUMNS if name in (rows.fieldnames or ())), None)
    if column is None:
        raise DataError(f"expected a column {' or '.join(COLUMNS)} in {path}; got {', '.join(rows.fieldnames or ())}")
    return [row[column] for row in rows if row[column]]


def _in_shard(path: Path) -> Iterable[Listed]:
    try:
        with tarfile.open(path, "r:") as shard:
            members = [member for member in shard if member.isfile() and not member.issparse()]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"expected a tar file without compression at {path}; {error}") from error
    for member in members:
        if Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Listed(f"{path}/{member.name}", Member(path, member.offset_data, member.size))
