"""Images that lie inside other files: in a tar, in a table."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.files import read_image
from exitwise.storage.images import BrokenImageError


class InsideSource:
    """Images that are read, when asked for, from their bytes. A kind of it says where these are.

    Attributes:
        names, classes, targets, groups, ledger, shards: see :class:`~exitwise.data.sources.base.Source`.
        channels: 1 or 3; images of other modes are converted.
    """

    shards: Tensor | None = None
    names: list[str]
    classes: list[str]
    targets: Tensor
    groups: list[str] | None
    ledger: ImageLedger
    channels: int

    @property
    def paths(self) -> list[Path]:
        """Return none: no image is a file of its own."""
        return []

    def content(self, index: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            BrokenImageError: if they cannot be read.
        """
        raise NotImplementedError

    def read(self, index: int) -> Tensor:
        try:
            return read_image(self.content(index), self.channels)
        except BrokenImageError as error:
            raise BrokenImageError(Path(self.names[index]), error.kind, error.reason) from error
