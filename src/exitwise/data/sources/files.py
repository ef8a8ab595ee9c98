"""Labelled image files, read from disk when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.data.sources.base import ArraySource, Source
from exitwise.errors import DataError
from exitwise.storage.images import BrokenImageError, ImageLike, read_header, read_pixels

IN_MEMORY_BYTES = 2**30
"""Equally sized images whose pixels fit into this are decoded once and kept."""


class Labelled(NamedTuple):
    """An image file, its class index, the name that it goes by in its data set, and its group, if that is known."""

    path: Path
    target: int
    name: str
    group: str | None = None


class FileSource:
    """Image files, read when asked for.

    Those that cannot be used, as far as their headers tell, are left out and entered in the ledger.

    Args:
        images: the files.
        classes: the class names, in order.
        channels: 1 or 3; images of other modes are converted.
        image_size: the side that all images must have; None for any size.
        ledger: the account to enter the images in.

    Raises:
        DataError: for images of another size.
    """

    shards: Tensor | None = None

    def __init__(
        self,
        images: Sequence[Labelled],
        classes: Sequence[str],
        channels: int,
        image_size: int | None = None,
        ledger: ImageLedger | None = None,
    ) -> None:
        self.channels = channels
        self.classes = list(classes)
        self.ledger = ledger or ImageLedger()
        self.ledger.images += len(images)
        usable = [image for image in images if enter(self.ledger, image.path, image_size)]
        self.paths = [image.path for image in usable]
        self.targets = torch.tensor([image.target for image in usable], dtype=torch.int64)
        self.names = [image.name for image in usable]
        groups = [image.group for image in usable if image.group is not None]
        self.groups = groups if len(groups) == len(usable) else None

    def read(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.channels)

    def stamp(self, index: int) -> str:
        return str(self.paths[index].stat().st_size)


class _Read(Source, Protocol):
    """Images that are read when asked for."""

    channels: int


def enter(
    ledger: ImageLedger, path: Path, image_size: int | None = None, content: Callable[[], bytes] | None = None
) -> bool:
    """Enter an image in a ledger by its header; return whether it can be used.

    Args:
        ledger: the account.
        path: of its file, or what it is called.
        image_size: the side that it must have; None for any size.
        content: returns its bytes, where they are no file of their own.

    Raises:
        DataError: for another size.
    """
    try:
        (width, height), conversions = read_header(path if content is None else content())
    except BrokenImageError as error:
        ledger.skip([Skipped.of(error)._replace(path=str(path))])
        return False
    if image_size is not None and (width, height) != (image_size, image_size):
        raise DataError(
            f"expected images of {image_size}x{image_size} pixels (image_size); {path} has "
            f"{width}x{height} (augment 'resize' takes any size)"
        )
    if conversions:
        ledger.conversions[str(path)] = conversions
    return True


def kept_or_read(source: _Read, image_size: int | None) -> Source:
    """Return images in memory where all have one size and fit there; else as they are."""
    fits = image_size is not None and len(source.targets) * source.channels * image_size**2 <= IN_MEMORY_BYTES
    return _in_memory(source) if fits else source


def _in_memory(source: _Read) -> ArraySource:
    """Return the same images, decoded once; they must be of one size. Those that cannot be decoded are left out."""
    images, kept = [], []
    for index in range(len(source.targets)):
        try:
            images.append(source.read(index))
            kept.append(index)
        except BrokenImageError as error:
            source.ledger.skip([Skipped.of(error)])
    pixels = torch.stack(images) if images else torch.empty(0, source.channels, 1, 1, dtype=torch.uint8)
    names, groups = ([each[index] for index in kept] if each else None for each in (source.names, source.groups))
    paths = [source.paths[index] for index in kept] if source.paths else []
    return ArraySource(pixels, source.targets[kept], source.classes, names, paths, source.ledger, groups)


def read_image(image: ImageLike, channels: int) -> Tensor:
    """Decode an image to uint8 (channels, height, width); see :func:`~exitwise.storage.images.read_pixels`.

    Raises:
        BrokenImageError: if it cannot be used.
    """
    return pil_to_tensor(read_pixels(image, channels))
