"""Shards as WebDataset has them: tar files of ``key.jpg`` beside ``key.cls`` or ``key.json``, read without unpacking.

Where each image lies in its shard is found at the start; then any image can be read by itself, so that shards are
divided, resumed and dealt to processes as files are. In which order they are read, near to theirs, is a matter of
:func:`~exitwise.data.sampling.streamed`. The package ``webdataset`` keeps that order in generators and buffers of its
workers, whose state cannot be asked for: a run could not go on to the bit.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from exitwise.catalogue.sources import COLUMNS, SHARDS
from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import Request, Source, Sources
from exitwise.data.sources.files import enter, kept_or_read
from exitwise.data.sources.inside import InsideSource
from exitwise.data.sources.labels import SEVERAL, class_names, numbered
from exitwise.data.sources.layout import KINDS, kind_of
from exitwise.errors import DataError
from exitwise.storage.folders import IMAGE_SUFFIXES, is_hidden
from exitwise.storage.images import BrokenImageError

LABELS = (".cls", ".json")


class Member(NamedTuple):
    """A file in a shard: where its bytes are."""

    shard: Path
    name: str
    offset: int
    size: int

    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            BrokenImageError: if they cannot be read.
        """
        try:
            with self.shard.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise BrokenImageError(self.path, "unreadable", error.strerror or str(error)) from error

    @property
    def path(self) -> Path:
        """What the file is called: its shard's path, and its name there."""
        return self.shard / self.name


class Sample(NamedTuple):
    """An image in a shard, its label, and the group that it is of, if that is given."""

    image: Member
    label: str
    group: str | None


class ShardSource(InsideSource):
    """Images in shards, read when asked for.

    Args:
        root: what names of images are from.
        samples: the images, shard by shard.
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
        root: Path,
        samples: Sequence[Sample],
        numbers: dict[str, int],
        channels: int,
        image_size: int | None = None,
        ledger: ImageLedger | None = None,
    ) -> None:
        self.root, self.channels, self.classes = root, channels, list(numbers)
        self.ledger = ledger or ImageLedger()
        self.ledger.images += len(samples)
        homes = {shard: shard.relative_to(root).as_posix() for shard in {each.image.shard for each in samples}}
        names = [f"{homes[each.image.shard]}/{each.image.name}" for each in samples]
        if image_size is not None:
            kept = [
                enter(self.ledger, Path(name), image_size, each.image.content)
                for name, each in zip(names, samples, strict=True)
            ]
            samples, names = list(compress(samples, kept)), list(compress(names, kept))
        self.files = sorted({each.image.shard for each in samples})
        number = {path: k for k, path in enumerate(self.files)}
        extents = [(number[each.image.shard], each.image.offset, each.image.size) for each in samples]
        self.extents = torch.tensor(extents, dtype=torch.int64).view(-1, 3)
        self.shards = self.extents[:, 0]
        self.targets = torch.tensor([numbers[each.label] for each in samples], dtype=torch.int64)
        self.names = names
        groups = [each.group for each in samples if each.group is not None]
        self.groups = groups if len(groups) == len(samples) else None

    def content(self, index: int) -> bytes:
        shard, offset, size = self.extents[index].tolist()
        return Member(self.files[shard], "", offset, size).content()

    def stamp(self, index: int) -> str:
        return str(self.extents[index, 2].item())


def open_shards(request: Request) -> Sources:
    """Return the images of a shard, or of a folder of them.

    Raises:
        DataError: for shards that cannot be used.
    """
    root = Path(request.data)
    found = read_shards(root)
    classes = class_names(root, _places(found["train"]))

    def source(part: str) -> Source | None:
        if part not in found:
            return None
        shards = _source(root, found[part], classes, request.channels, request.image_size, request.ledger)
        return kept_or_read(shards, request.image_size)

    train, val, test = source("train"), source("val"), source("test")
    assert train is not None
    return Sources(train, val if test else None, test or val)


def shards_at(root: Path, classes: Sequence[str], channels: int, image_size: int | None) -> Source:
    """Return all images of a shard, or of a folder of them, with these class names.

    Raises:
        DataError: for shards that cannot be used.
    """
    samples = [each for part in read_shards(root).values() for each in part]
    return kept_or_read(_source(root, samples, classes, channels, image_size), image_size)


def read_shards(root: Path) -> dict[str, list[Sample]]:
    """Return the samples of each part that is there, by ``train``, ``val`` and ``test``.

    Raises:
        DataError: for shards that cannot be used.
    """
    return {part: [each for path in paths for each in samples_in(path)] for part, paths in shards_of(root).items()}


def _source(root: Path, samples: Sequence[Sample], classes: Sequence[str], *options: Any) -> ShardSource:
    return ShardSource(
        root.parent if root.is_file() else root, samples, numbered(root, _places(samples), classes), *options
    )


def shards_of(root: Path) -> dict[str, list[Path]]:
    """Return the shards of each part that is there, by ``train``, ``val`` and ``test``: told by the names of files, or
    of the folders that they are in.

    Raises:
        DataError: if some say a part and others none, or none is to train on.
    """
    if root.is_file():
        return {"train": [root]}
    kinds: dict[str | None, list[Path]] = {}
    for path in SHARDS.files_at(root):
        kinds.setdefault(kind_of((path.parent if path.parent != root else path).with_suffix("").name), []).append(path)
    if set(kinds) == {None}:
        return {"train": kinds[None]}
    if None in kinds:
        raise DataError(
            f"expected shards of {', '.join(KINDS)} by name in {root}, or of none; {kinds[None][0].name} says nothing"
        )
    if "train" not in kinds:
        raise DataError(f"expected shards to train on in {root}; got {' and '.join(map(str, kinds))} alone")
    return {part: kinds[part] for part in KINDS if part in kinds}


def samples_in(path: Path) -> Iterator[Sample]:
    """Yield the samples of a shard in its order.

    Raises:
        DataError: for one that is empty, cut off or no tar, and for images without a label or labels without an image.
    """
    files: dict[str, dict[str, Member]] = {}
    for member in _members(path):
        folder, name = os.path.split(member.name)
        stem, dot, suffix = name.partition(".")
        suffix = dot + suffix.lower()
        if is_hidden(name) or not (suffix in LABELS or suffix in IMAGE_SUFFIXES):
            continue
        mine = files.setdefault(os.path.join(folder, stem), {})
        kind = suffix if suffix in LABELS else "image"
        if kind in mine:
            raise DataError(
                f"expected one image and one label of each key in {path}; got {mine[kind].name} and {member.name}"
            )
        mine[kind] = member
    if not files:
        raise DataError(f"expected images and labels (key.jpg with key.cls or key.json) in {path}; found none")
    for key, mine in files.items():
        yield _sample(path, key, mine)


def _sample(path: Path, key: str, files: dict[str, Member]) -> Sample:
    image, text, record = (files.get(kind) for kind in ("image", *LABELS))
    if image is None:
        raise DataError(f"expected an image beside {next(iter(files.values())).name} in {path}; found none")
    holder = text or record
    if holder is None:
        raise DataError(f"expected a label, {key}.cls or {key}.json, beside {image.name} in {path}; found none")
    said = {} if record is None else _said(record)
    label = said.get("label") if text is None else text.content().decode(errors="replace").strip()
    if not label:
        raise DataError(f"expected a label in {holder.path}; found none")
    return Sample(image, label, said.get("group"))


def _members(path: Path) -> Iterator[Member]:
    """Yield the files in a tar."""
    if path.stat().st_size == 0:
        raise DataError(f"expected a tar of images and labels at {path}; it is empty")
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb", buffering=0) as file:
            while (found := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which it would keep
                if found.isreg() and not found.issparse():
                    yield Member(path, found.name, found.offset_data, found.size)
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end mark is missing, so it is cut off or damaged")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"expected a whole tar, not compressed, at {path}; {error}") from error


def _said(member: Member) -> dict[str, Any]:
    """Return label and group as a JSON file gives them."""
    try:
        values = json.loads(member.content())
        if not isinstance(values, dict):
            raise ValueError(f"it has a {type(values).__name__}")
    except ValueError as error:
        raise DataError(f"expected an object in JSON in {member.path}; {error}") from error
    if any(isinstance(value, list) for name, value in values.items() if str(name).lower() in COLUMNS["label"]):
        raise DataError(f"expected one label in {member.path}; got {SEVERAL}")
    by_name = {str(name).lower(): value for name, value in values.items() if isinstance(value, (str, int))}
    given = {
        role: next((by_name[name] for name in COLUMNS[role] if name in by_name), None) for role in ("label", "group")
    }
    return {role: None if value is None else str(value).strip() for role, value in given.items()}


def _places(samples: Sequence[Sample]) -> dict[str, str]:
    """Return where each label stands first."""
    return {label: str(each.image.path) for label, each in {each.label: each for each in reversed(samples)}.items()}
