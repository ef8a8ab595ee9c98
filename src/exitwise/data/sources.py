"""Where labelled images come from: bundled digits, CIFAR, and folders of images.

A source reads single images as uint8 tensors; splits, augmentation and batches are made elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2.functional import pil_to_tensor

from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.errors import DataError
from exitwise.settings.checks import DATA_SETS, check_data, check_shape
from exitwise.storage.files import IMAGE_SUFFIXES, image_files
from exitwise.storage.images import BrokenImageError, read_header, read_pixels

IN_MEMORY_BYTES = 2**30
"""Folders of equally sized images whose pixels fit into this are decoded once and kept."""


class Source(Protocol):
    """Labelled images.

    Attributes:
        classes: class names.
        targets: class index of each image, int64 (N).
        names: a name for each image, unique within the source.
        paths: the file of each image; empty for data that does not come from files.
        ledger: the account of its files, shared by all parts of a data set.
    """

    paths: list[Path]
    ledger: ImageLedger
    classes: list[str]
    targets: Tensor
    names: list[str]

    def read(self, index: int) -> Tensor:
        """The image as uint8 (channels, height, width).

        Raises:
            BrokenImageError: if its file cannot be used.
        """
        ...

    def stamp(self, index: int) -> str:
        """What tells an image that has changed: its pixels where they are in memory, else its file's size."""
        ...


class Sources(NamedTuple):
    """What a data set offers: images to train on, and held-out images where it has any."""

    train: Source
    calibration: Source | None
    test: Source | None


class ArraySource:
    """Images of one size, held in memory.

    Args:
        images: uint8 (N, channels, height, width).
        targets: class indices (N).
        classes: class names.
        names: one per image; by default their numbers.
        paths: the files they were decoded from, if any.
        ledger: the account of these files.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        paths: Sequence[Path] = (),
        ledger: ImageLedger | None = None,
    ) -> None:
        self.images = images
        self.targets = targets.long()
        self.classes = list(classes)
        self.names = list(names) if names is not None else [str(i) for i in range(len(images))]
        self.paths = list(paths)
        self.ledger = ledger or ImageLedger()

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def stamp(self, index: int) -> str:
        return hashlib.sha256(self.images[index].numpy().tobytes()).hexdigest()


class FolderSource:
    """Images in one folder per class, read from disk when asked for.

    Files that cannot be used, as far as their headers tell, are left out and entered in the ledger.

    Args:
        root: the folder that holds one folder per class.
        channels: 1 or 3; images of other modes are converted.
        image_size: the side that all images must have; None for any size.
        classes: the class names to use, in order; by default the sorted names of the sub-folders.
        ledger: the account to enter the images in.

    Raises:
        DataError: without classes or images, or for images of another size.
    """

    def __init__(
        self,
        root: Path,
        channels: int,
        image_size: int | None = None,
        classes: Sequence[str] | None = None,
        ledger: ImageLedger | None = None,
    ) -> None:
        self.channels = channels
        self.ledger = ledger or ImageLedger()
        found = class_folders(root)
        if not found:
            raise DataError(f"expected a folder per class with images in {root}; found none")
        if classes is None and len(found) < 2:
            raise DataError(f"expected at least two class folders with images in {root}; found only {found[0]!r}")
        self.classes = list(classes) if classes is not None else found
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise DataError(f"expected the classes of the training images in {root}; got the unknown {unknown[0]!r}")
        files = [(path, target) for target, name in enumerate(self.classes) for path in image_files(root / name)]
        if not files:
            raise DataError(f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {root}; found none")
        self.ledger.images += len(files)
        usable = [(path, target) for path, target in files if self._look_at(path, image_size)]
        self.paths = [path for path, _ in usable]
        self.targets = torch.tensor([target for _, target in usable], dtype=torch.int64)
        self.names = [path.relative_to(root).as_posix() for path in self.paths]

    def _look_at(self, path: Path, image_size: int | None) -> bool:
        """Enter an image in the ledger by its header; says whether it can be used."""
        try:
            (width, height), conversions = read_header(path)
        except BrokenImageError as error:
            self.ledger.skip([Skipped.of(error)])
            return False
        if image_size is not None and (width, height) != (image_size, image_size):
            raise DataError(
                f"expected images of {image_size}x{image_size} pixels (image_size); {path} has "
                f"{width}x{height} (augment 'resize' takes any size)"
            )
        if conversions:
            self.ledger.conversions[str(path)] = conversions
        return True

    def read(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.channels)

    def stamp(self, index: int) -> str:
        return str(self.paths[index].stat().st_size)

    def in_memory(self) -> ArraySource:
        """The same images, decoded once; they must be of one size. Those that cannot be decoded are left out."""
        images, kept = [], []
        for index in range(len(self.paths)):
            try:
                images.append(self.read(index))
                kept.append(index)
            except BrokenImageError as error:
                self.ledger.skip([Skipped.of(error)])
        pixels = torch.stack(images) if images else torch.empty(0, self.channels, 1, 1, dtype=torch.uint8)
        names, paths = [self.names[index] for index in kept], [self.paths[index] for index in kept]
        return ArraySource(pixels, self.targets[kept], self.classes, names, paths, self.ledger)


def open_source(
    name_or_path: str,
    root: str | Path | None = None,
    channels: int = 3,
    image_size: int | None = None,
    ledger: ImageLedger | None = None,
) -> Sources:
    """Find a data set.

    Args:
        name_or_path: ``digits``, ``cifar10``, ``cifar100``, or a folder: either ``train`` and ``val`` or
            ``test`` (each with a folder per class, as in ImageNet's layout) or a folder per class.
        root: where CIFAR lies or is downloaded to.
        channels: 1 or 3.
        image_size: the side that all images must have; None for any size.
        ledger: the account to enter a folder's images in.

    Raises:
        DataError: if there is no such data set, nothing in it, or images of another size or number of channels.
    """
    check_data(name_or_path)
    if name_or_path in DATA_SETS:
        check_shape(name_or_path, channels, image_size)
        if name_or_path == "digits":
            train, test = _digits(), None
        else:
            train, test = _cifar(name_or_path, Path(root) if root else Path.home() / ".cache" / "exitwise")
        return Sources(train, None, test)
    return _folder(Path(name_or_path), channels, image_size, ledger or ImageLedger())


def _digits() -> ArraySource:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    return ArraySource(images, torch.from_numpy(bunch.target), [str(digit) for digit in range(10)])


def _cifar(name: str, root: Path) -> tuple[ArraySource, ArraySource]:
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    parts = []
    for train in (True, False):
        try:
            data = kind(str(root), train=train, download=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"expected {name} in {root} (data_root) or a connection to download it; {reason}"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        parts.append(ArraySource(images, torch.tensor(data.targets), data.classes))
    return parts[0], parts[1]


def _folder(path: Path, channels: int, image_size: int | None, ledger: ImageLedger) -> Sources:
    def source(root: Path, classes: Sequence[str] | None = None) -> Source:
        found = FolderSource(root, channels, image_size, classes, ledger)
        fits = image_size is not None and len(found.paths) * channels * image_size**2 <= IN_MEMORY_BYTES
        return found.in_memory() if fits else found

    if not (path / "train").is_dir():
        if {"val", "test"} & set(class_folders(path)):
            raise DataError(f"expected a folder train beside val or test in {path}; found none")
        return Sources(source(path), None, None)
    held_out = [name for name in ("val", "test") if (path / name).is_dir()]
    if not held_out:
        raise DataError(f"expected a folder test or val beside {path / 'train'}; found neither")
    train = source(path / "train")
    others = [source(path / name, train.classes) for name in held_out]
    # With val alone, as in ImageNet's layout, its images are what everyone tests on.
    return Sources(train, others[0] if len(others) == 2 else None, others[-1])


def class_folders(root: Path) -> list[str]:
    """Names of the sub-folders that hold images, sorted."""
    return sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".") and image_files(e))


def read_image(path: Path, channels: int) -> Tensor:
    """Decode an image to uint8 (channels, height, width); see :func:`~exitwise.storage.images.read_pixels`.

    Raises:
        BrokenImageError: if it cannot be used.
    """
    return pil_to_tensor(read_pixels(path, channels))
