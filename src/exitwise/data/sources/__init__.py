"""Where labelled images and texts come from, a file each: bundled digits, CIFAR, folders of images, tables."""

from __future__ import annotations

from pathlib import Path

from exitwise.catalogue.sources import FOLDER, HUB, SOURCES, TEXTS, is_named, path_data
from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import ArraySource, Request, Source, Sources
from exitwise.data.sources.files import FileSource, read_image
from exitwise.data.sources.folder import FolderSource
from exitwise.data.tokens import Tokens
from exitwise.settings.checks import check_data, check_shape, check_texts

__all__ = [
    "ArraySource",
    "FileSource",
    "FolderSource",
    "Request",
    "Source",
    "Sources",
    "open_source",
    "read_image",
]


def open_source(
    name_or_path: str,
    root: str | Path | None = None,
    channels: int = 3,
    image_size: int | None = None,
    ledger: ImageLedger | None = None,
    tokens: Tokens | None = None,
) -> Sources:
    """Find a data set.

    Args:
        name_or_path: a name in ``catalogue/sources.py``, or a folder: either folders of parts
            (``train`` and ``val`` or ``test``, each with a folder per class, as in ImageNet's layout; spelled in other
            ways too) or a folder per class; or a CSV or Parquet table of images and labels.
        root: where CIFAR lies or is downloaded to.
        channels: 1 or 3.
        image_size: the side that all images must have; None for any size.
        ledger: the account to enter a folder's images in.
        tokens: the way of texts to the network: the data are a table of texts then.

    Raises:
        DataError: if there is no such data set, nothing in it, or images of another size or number of channels.
    """
    check_data(name_or_path)
    place = Path(root) if root else Path.home() / ".cache" / "exitwise"
    request = Request(name_or_path, place, channels, image_size, ledger or ImageLedger(), tokens)
    if tokens is not None:
        check_texts(name_or_path)
        return TEXTS.load()(request)
    if name_or_path not in SOURCES and is_named(name_or_path):
        return HUB.load()(request)
    if name_or_path not in SOURCES:
        return (path_data(name_or_path) or FOLDER).load()(request)
    check_shape(name_or_path, channels, image_size)
    return SOURCES[name_or_path].load()(request)
