"""Data sets of Hugging Face's ``datasets``: in Arrow in a folder, or by their name on the hub or in its cache."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from exitwise.catalogue.extras import needing_extras
from exitwise.catalogue.sources import COLUMNS, HUB
from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.files import enter, kept_or_read
from exitwise.data.sources.inside import InsideSource
from exitwise.data.sources.labels import SEVERAL, class_names, numbered
from exitwise.data.sources.layout import kind_of
from exitwise.errors import DataError, ExitwiseWarning
from exitwise.storage.images import BrokenImageError

Table = Any
"""A ``datasets.Dataset``, which may not be installed."""

UNLABELLED = ("-1", "None")
"""What stands for a label where a part of a data set has none."""


class ArrowSource(InsideSource):
    """Images in a column of a data set, read when asked for.

    Args:
        name: of the data set's split, for the names of its images.
        images: the column, undecoded.
        labels: a class name for each.
        numbers: of the classes, by name.
        channels: 1 or 3; images of other modes are converted.
        image_size: the side that all images must have, as far as their headers tell; None for any size, and then
            headers are not looked at.
        ledger: the account to enter the images in.

    Raises:
        DataError: for images of another size.
    """

    def __init__(
        self,
        name: str,
        images: Table,
        labels: list[str],
        numbers: dict[str, int],
        channels: int,
        image_size: int | None = None,
        ledger: ImageLedger | None = None,
    ) -> None:
        self.images, self.channels, self.classes = images, channels, list(numbers)
        (self.column,) = images.column_names
        self.ledger = ledger or ImageLedger()
        self.ledger.images += len(images)
        self.names = [f"{name}/{index:08d}" for index in range(len(images))]
        self.rows = list(range(len(images)))
        self.sizes = _sizes(images)
        self.targets = torch.tensor([numbers[label] for label in labels], dtype=torch.int64)
        self.groups = None
        if image_size is not None:
            kept = [
                enter(self.ledger, Path(self.names[row]), image_size, lambda row=row: self.content(row))  # type: ignore[misc]
                for row in self.rows
            ]
            self.targets = self.targets[torch.tensor(kept)]
            self.names, self.rows = list(compress(self.names, kept)), list(compress(self.rows, kept))

    def content(self, index: int) -> bytes:
        image = self.images[self.rows[index]][self.column]
        try:
            return b"" if image is None else image["bytes"] or Path(image["path"]).read_bytes()
        except OSError as error:
            raise BrokenImageError(Path(self.names[index]), "unreadable", error.strerror or str(error)) from error

    def stamp(self, index: int) -> str:
        size = self.sizes[self.rows[index]]
        return str(len(self.content(index)) if size is None else size)


def open_arrow(request: Request) -> Sources:
    """Return the images of a data set that ``save_to_disk`` wrote into a folder.

    Raises:
        DataError: if it cannot be used.
    """
    with needing_extras("a data set in Arrow"):
        from datasets import load_from_disk
    return _opened(request, lambda: load_from_disk(request.data))


def open_hub(request: Request) -> Sources:
    """Return the images of a data set on the hub or in its cache: ``hf/OWNER/NAME``, ``hf/OWNER/NAME:CONFIGURATION``.

    Raises:
        DataError: if it cannot be used.
    """
    with needing_extras("a data set of the hub"):
        from datasets import load_dataset
    name, _, configuration = request.data.removeprefix(HUB.name + "/").partition(":")
    return _opened(request, lambda: load_dataset(name, configuration or None))


def _opened(request: Request, load: Callable[[], Any]) -> Sources:
    try:
        found = load()
    except Exception as error:  # of a dozen libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"expected a data set of the library datasets at {request.data}; {reason}") from error
    tables: dict[str, Table] = found if isinstance(found, dict) else {"train": found}
    parts = {kind: (name, table) for name, table in tables.items() if (kind := kind_of(name))}
    parts = parts or ({"train": next(iter(tables.items()))} if len(tables) == 1 else {})
    if "train" not in parts:
        raise DataError(f"expected a split train in {request.data}; got {', '.join(tables)}")
    image, label = _columns(request.data, parts["train"][1])
    labels = {kind: _labels(request.data, table, label) for kind, (_, table) in parts.items()}
    for kind in ("val", "test"):
        if kind in labels and set(labels[kind]) <= set(UNLABELLED):
            del labels[kind]
            warnings.warn(f"split {parts[kind][0]} of {request.data} has no labels and is left out", ExitwiseWarning, 2)
    path, feature = Path(request.data), parts["train"][1].features[label]
    classes = list(getattr(feature, "names", ())) or class_names(path, _places(labels["train"]))

    def source(kind: str) -> Source | None:
        if kind not in labels:
            return None
        name, table = parts[kind]
        numbers = numbered(path, _places(labels[kind]), classes)
        images = _undecoded(table.select_columns([image]), image)
        made = ArrowSource(name, images, labels[kind], numbers, request.channels, request.image_size, request.ledger)
        return kept_or_read(made, request.image_size)

    train, val, test = source("train"), source("val"), source("test")
    assert train is not None
    return Sources(train, val if test else None, test or val)


def _columns(data: str, table: Table) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    from datasets import ClassLabel, Image, LargeList, List

    def found(role: str, kind: type) -> list[str]:
        named = [name for each in COLUMNS[role] for name in table.column_names if name.lower() == each]
        of_kind = [name for name, feature in table.features.items() if isinstance(feature, kind)]
        return [name for name in named if name in of_kind][:1] or of_kind or named[:1]

    images, labels = found("image", Image), found("label", ClassLabel)
    for what, names in (("images", images), ("labels", labels)):
        if len(names) != 1:
            raise DataError(
                f"expected one column of {what} in {data}; got {', '.join(names or table.column_names)}"
                + (f" (call one of them {what[:-1]}: rename_column)" if names else "")
            )
    if not isinstance(table.features[images[0]], Image):
        raise DataError(f"expected a column of images in {data}; {images[0]} holds {_kind(table.features[images[0]])}")
    if isinstance(table.features[labels[0]], (List, LargeList, list)):
        raise DataError(f"expected one label of each image in {data}; {labels[0]} holds {SEVERAL}")
    if labels[0] == images[0] or not hasattr(table.features[labels[0]], "dtype"):
        raise DataError(f"expected a column of labels in {data}; {labels[0]} holds {_kind(table.features[labels[0]])}")
    return images[0], labels[0]


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _labels(data: str, table: Table, column: str) -> list[str]:
    """Return the label of each row as text."""
    if column not in table.column_names:
        raise DataError(
            f"expected the column {column} in all splits of {data}; one has {', '.join(table.column_names)}"
        )
    names = getattr(table.features[column], "names", None)
    values = table.with_format(None)[column][:]
    return [str(value) if names is None or value in (None, -1) else names[value] for value in values]


def _places(labels: list[str]) -> dict[str, str]:
    """Return where each label stands first."""
    return {label: f"row {row}" for row, label in reversed(list(enumerate(labels)))}


def _sizes(images: Table) -> list[int | None]:
    """Return the number of bytes of each image, without reading them; None for those that are files of their own."""
    from pyarrow import compute

    column, rows = images.data.column(0), images._indices
    sizes = compute.binary_length(compute.struct_field(column, "bytes"))
    return (sizes if rows is None else sizes.take(rows.column(0))).to_pylist()


def _undecoded(table: Table, column: str) -> Table:
    from datasets import Image

    return table.cast_column(column, Image(decode=False))
