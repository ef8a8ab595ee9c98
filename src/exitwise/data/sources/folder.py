"""Folders of images, in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.data.sources.base import ArraySource, Request, Source, Sources
from exitwise.errors import DataError
from exitwise.storage.files import IMAGE_SUFFIXES, image_files
from exitwise.storage.images import BrokenImageError, ImageLike, read_header, read_pixels

IN_MEMORY_BYTES = 2**30
"""Folders of equally sized images whose pixels fit into this are decoded once and kept."""


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
        """Return the same images, decoded once; they must be of one size. Those that cannot be decoded are left out."""
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


def open_folder(request: Request) -> Sources:
    """Return the images of a folder: either ``train`` and ``val`` or ``test``, or a folder per class.

    Raises:
        DataError: if there is nothing in it, or images are of another size.
    """
    path, channels, image_size = Path(request.data), request.channels, request.image_size

    def source(root: Path, classes: Sequence[str] | None = None) -> Source:
        found = FolderSource(root, channels, image_size, classes, request.ledger)
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
    """Return the names of the sub-folders that hold images, sorted."""
    return sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".") and image_files(e))


def read_image(image: ImageLike, channels: int) -> Tensor:
    """Decode an image to uint8 (channels, height, width); see :func:`~exitwise.storage.images.read_pixels`.

    Raises:
        BrokenImageError: if it cannot be used.
    """
    return pil_to_tensor(read_pixels(image, channels))
