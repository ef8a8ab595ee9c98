"""Where labelled images and signals come from: data sets that have a name, and paths."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name


@dataclass(frozen=True)
class NamedData(Entry):
    """A data set that needs no path. Its code is called with a :class:`~exitwise.data.sources.base.Request`.

    Attributes:
        channels: of its images.
        side: of its images, in pixels; of signals, their length.
        recipe: that is used with it, unless another is named.
        settings: that are otherwise with it than in that recipe, such as ``mean`` and ``std``.
        signals: whether it has signals, which are carried as images of one row, in place of square images.
    """

    channels: int = 3
    side: int = 32
    recipe: str = "images"
    settings: Mapping[str, Any] = field(default_factory=dict)
    signals: bool = False


SOURCES = by_name(
    NamedData(
        "digits",
        "1797 grey digits of 8x8 pixels, bundled with exitwise",
        "exitwise.data.sources.digits:open_digits",
        channels=1,
        side=8,
        recipe="digits",
    ),
    NamedData(
        "mnist1d",
        "14 000 signals of 40 values in 10 classes, made by exitwise after MNIST-1D's recipe",
        "exitwise.data.sources.mnist1d:open_mnist1d",
        channels=1,
        side=40,
        recipe="mnist1d",
        signals=True,
    ),
    NamedData(
        "fashion_mnist",
        "70 000 grey pictures of clothes, 28x28 pixels, in 10 classes: Debian's, or downloaded if need be",
        "exitwise.data.sources.fashion_mnist:open_fashion_mnist",
        channels=1,
        side=28,
        recipe="fashion_mnist",
    ),
    NamedData(
        "cifar10",
        "60 000 photographs of 32x32 pixels in 10 classes, downloaded if need be",
        "exitwise.data.sources.cifar:open_cifar10",
        recipe="cifar10_msdnet5",
    ),
    NamedData(
        "cifar100",
        "60 000 photographs of 32x32 pixels in 100 classes, downloaded if need be",
        "exitwise.data.sources.cifar:open_cifar100",
        recipe="cifar100_msdnet5",
    ),
)


@dataclass(frozen=True)
class PathData(Entry):
    """Data that lie at a path. The code is called as that of :class:`NamedData`.

    Attributes:
        suffixes: of its files, in small letters; none for a folder.
        in_folders: whether such files may lie in a folder, or in folders of it.
        marks: names of files by which a folder of this kind is known.
    """

    suffixes: tuple[str, ...] = ()
    in_folders: bool = False
    marks: tuple[str, ...] = ()

    def is_at(self, path: Path) -> bool:
        """Return whether there is such data at a path."""
        if self.suffixes and path.is_file():
            return path.suffix.lower() in self.suffixes
        if self.marks:
            return any((path / mark).is_file() for mark in self.marks)
        return path.is_dir() and (not self.suffixes or (self.in_folders and bool(self.files_at(path))))

    def files_at(self, folder: Path) -> list[Path]:
        """Return the files in a folder or, if it has folders, in these; none unless each of them has some."""
        folders = sorted(each for each in _seen_in(folder) if each.is_dir())
        found = [
            sorted(each for each in _seen_in(place) if each.suffix.lower() in self.suffixes and each.is_file())
            for place in folders or [folder]
        ]
        return [each for files in found for each in files] if all(found) else []


def _seen_in(folder: Path) -> list[Path]:
    """Return what is in a folder, but for what is hidden or a tool's."""
    return [each for each in folder.iterdir() if each.name[0] not in ".@#$_"]


COLUMNS = {
    "image": ("image", "file", "path", "filename", "file_name", "image_path", "filepath"),
    "text": ("text", "sentence", "document", "message"),
    "label": ("label", "class", "target", "category"),
    "split": ("split", "set", "part"),
    "group": ("group", "patient", "patient_id", "group_id"),
}
"""What columns of tables may be called, in any case; of several the first. Those of an image or a text and of a label
are needed."""


class TextTable(PathData):
    """A table that has a column of texts and none of images."""

    def is_at(self, path: Path) -> bool:
        return super().is_at(path) and self.is_among(_columns(path))

    @staticmethod
    def is_among(columns: Iterable[str]) -> bool:
        """Return whether these are columns of such a table."""
        names = {str(name).strip().lower() for name in columns}
        return bool(names & set(COLUMNS["text"])) and not names & set(COLUMNS["image"])


def _columns(table: Path) -> Sequence[str]:
    """Return the names of a table's columns; none where they cannot be read, which who reads the rows will say."""
    try:
        if table.suffix.lower() == ".parquet":
            from pyarrow import parquet

            return list(parquet.read_schema(table).names)
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ","), [])
    except (OSError, ValueError, ImportError, csv.Error):
        return []


SHARDS = PathData(
    "shards",
    "tar files of images and labels, as WebDataset has them, or a folder of such shards",
    "exitwise.data.sources.shards:open_shards",
    (".tar",),
    in_folders=True,
)
ARROW = PathData(
    "arrow",
    "a folder that Hugging Face's datasets saved",
    "exitwise.data.sources.arrow:open_arrow",
    marks=("dataset_dict.json", "state.json"),
)
HUB = Entry("hf", "a data set of Hugging Face's hub, as hf/OWNER/NAME", "exitwise.data.sources.arrow:open_hub")
FOLDER = PathData("folder", "a folder of images per class", "exitwise.data.sources.folder:open_folder")
MANIFEST = PathData(
    "manifest",
    "a CSV or Parquet table of images and labels",
    "exitwise.data.sources.manifest:open_manifest",
    (".csv", ".tsv", ".parquet"),
)
TEXTS = TextTable(
    "texts",
    "a CSV or Parquet table of texts and labels, for hf/NAME",
    "exitwise.data.sources.texts:open_texts",
    MANIFEST.suffixes,
)
PATHS = by_name(ARROW, SHARDS, FOLDER, TEXTS, MANIFEST)
"""What a path may name; of several kinds that are there, the first."""


def path_data(data: str) -> PathData | None:
    """Return what kind of data lie at a path; None if there are none."""
    return next((kind for kind in PATHS.values() if data and kind.is_at(Path(data))), None)


def is_named(data: str) -> bool:
    """Return whether data are known by a name, here or on the hub, wherever they lie."""
    return data in SOURCES or data.startswith(HUB.name + "/")


def data_names() -> str:
    """Return what may be given as data, in words."""
    return (
        f"{', '.join(SOURCES)}, a folder of images, a CSV or Parquet table of images or texts and labels, shards in "
        "tar, a data set of Hugging Face's datasets in a folder, or hf/OWNER/NAME"
    )
