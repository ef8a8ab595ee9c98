"""What a source of labelled images is: it reads single ones as uint8 tensors. Images in memory are one.

Splits, augmentation and batches are made elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from exitwise.data.ledger import ImageLedger
from exitwise.data.tokens import Tokens


class Source(Protocol):
    """Labelled images.

    Attributes:
        classes: class names.
        targets: class index of each image, int64 (N).
        names: a name for each image, unique within the source.
        paths: the file of each image; empty for data that does not come from files.
        ledger: the account of its files, shared by all parts of a data set.
        groups: what each image is of, such as a patient, where images of one are to stay together; None if unknown.
        shards: the number of the file that holds each image, int64 (N), where a file holds many, in the order in which
            they lie there: they are best read nearly in order; None where any order does.
    """

    ledger: ImageLedger
    classes: list[str]
    targets: Tensor
    names: list[str]
    groups: list[str] | None
    shards: Tensor | None

    @property
    def paths(self) -> list[Path]: ...

    def read(self, index: int) -> Tensor:
        """Return the image as uint8 (channels, height, width).

        Raises:
            BrokenImageError: if its file cannot be used.
        """
        ...

    def stamp(self, index: int) -> str:
        """Return what tells an image that has changed: its pixels where they are in memory, else its file's size."""
        ...


class Sources(NamedTuple):
    """The parts of a data set: images to train on, and held-out images where it has any."""

    train: Source
    calibration: Source | None
    test: Source | None


class Request(NamedTuple):
    """A request for a data set.

    Attributes:
        data: its name, or the path of a folder.
        root: where named data lies, or is downloaded to.
        channels: 1 or 3.
        image_size: the side that all images must have; None for any size.
        ledger: the account to enter a folder's images in.
        tokens: the way of texts to the network; None for images.
    """

    data: str
    root: Path
    channels: int
    image_size: int | None
    ledger: ImageLedger
    tokens: Tokens | None = None


class ArraySource:
    """Images of one size, held in memory.

    Args:
        images: uint8 (N, channels, height, width).
        targets: class indices (N).
        classes: class names.
        names: one per image; by default their numbers.
        paths: the files they were decoded from, if any.
        ledger: the account of these files.
        groups: see :class:`Source`.
    """

    shards: Tensor | None = None

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        paths: Sequence[Path] = (),
        ledger: ImageLedger | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.targets = targets.long()
        self.classes = list(classes)
        self.names = list(names) if names is not None else [str(i) for i in range(len(images))]
        self.paths = list(paths)
        self.ledger = ledger or ImageLedger()
        self.groups = None if groups is None else list(groups)

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def stamp(self, index: int) -> str:
        return hashlib.sha256(self.images[index].numpy().tobytes()).hexdigest()
