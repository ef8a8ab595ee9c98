"""Tables of texts and labels: read as token ids, which are kept in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.labels import class_names, numbered
from exitwise.data.sources.tables import Row, places, read_parts
from exitwise.data.tokens import Tokens
from exitwise.errors import DataError, ExitwiseWarning


class TextSource:
    """Texts, as a network sees them.

    Args:
        rows: of a table.
        ids: token ids of each text, int64 (tokens).
        numbers: of the classes, by name.
        tokens: how rows are filled up.
        cut: whether each text was cut.

    Attributes:
        lengths: tokens of each text, int64 (N).
        names: the line that each text stands in.
    """

    shards: Tensor | None = None

    def __init__(
        self, rows: Sequence[Row], ids: Sequence[Tensor], numbers: dict[str, int], tokens: Tokens, cut: Sequence[bool]
    ) -> None:
        self.ids, self.tokens = list(ids), tokens
        self.cut = torch.tensor(cut, dtype=torch.bool)
        self.classes = list(numbers)
        self.targets = torch.tensor([numbers[row.label] for row in rows], dtype=torch.int64)
        self.lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
        self.names = [f"line {row.line}" for row in rows]
        groups = [row.group for row in rows if row.group is not None]
        self.groups = groups if len(groups) == len(rows) else None
        self.ledger = ImageLedger()
        self.paths: list[Path] = []

    def read(self, index: int) -> Tensor:
        return self.ids[index]

    def stamp(self, index: int) -> str:
        return hashlib.sha256(self.ids[index].numpy().tobytes()).hexdigest()

    def inputs(self, indices: Tensor) -> dict[str, Tensor]:
        """Return some texts as inputs of a network, filled up to the longest of them."""
        return self.tokens.batch([self.ids[index] for index in indices.tolist()])


def open_texts(request: Request) -> Sources:
    """Return the texts of a table.

    A text that becomes the same tokens as an earlier one is left out, so that none is on both sides of a split.

    Raises:
        DataError: for a table that cannot be used.
    """
    path = Path(request.data)
    if request.tokens is None:
        raise DataError(f"expected images; {path} is a table of texts, for `exitwise train --model hf/NAME`")
    parts = read_texts(path)
    known = class_names(path, places(parts["train"]))
    seen: set[bytes] = set()
    made: dict[str, Source] = {
        part: _source(path, rows, numbered(path, places(rows), known), request.tokens, seen)
        for part, rows in parts.items()
    }
    val, test = made.get("val"), made.get("test")
    return Sources(made["train"], val if test else None, test or val)


def read_texts(path: Path) -> dict[str, list[Row]]:
    """Return the rows of each part of a table of texts, as :func:`~exitwise.data.sources.tables.read_parts` does.

    Raises:
        DataError: for a table that cannot be used, or texts that are not in UTF-8.
    """
    parts = read_parts(path, "text")
    for row in (row for rows in parts.values() for row in rows):
        if not row.content.isprintable() and any("\ud800" <= char <= "\udfff" for char in row.content):
            raise DataError(f"expected texts in UTF-8 in {path}; line {row.line} has others")
    return parts


def texts_at(path: Path, classes: Sequence[str], tokens: Tokens) -> TextSource:
    """Return all texts of a table, with these class names.

    Raises:
        DataError: for a table that cannot be used.
    """
    parts = read_texts(path)
    rows = [row for part in parts.values() for row in part]
    return _source(path, rows, numbered(path, places(rows), classes), tokens, set())


def _source(path: Path, rows: Sequence[Row], numbers: dict[str, int], tokens: Tokens, seen: set[bytes]) -> TextSource:
    """Return the texts of a part that are none of those ``seen``, to which they are added."""
    ids, cut = tokens.ids([row.content for row in rows])
    kept = []
    for index, (row, own) in enumerate(zip(rows, ids, strict=True)):
        if not len(own):
            raise DataError(f"expected texts of at least one token in {path}; line {row.line} has none")
        key = own.numpy().tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(index)
    if len(kept) < len(rows):
        warnings.warn(
            f"{len(rows) - len(kept)} of {len(rows)} texts of {path} are to the network as earlier ones, and are left "
            "out",
            ExitwiseWarning,
            stacklevel=2,
        )
    return TextSource([rows[k] for k in kept], [ids[k] for k in kept], numbers, tokens, [cut[k] for k in kept])
