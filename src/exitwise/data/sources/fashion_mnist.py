"""Fashion-MNIST (Xiao et al., 2017): its four files, as Debian or anyone else has put them; or by torchvision."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from exitwise.data.sources.base import ArraySource, Request, Sources
from exitwise.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""

PARTS = ("train", "t10k")
TYPE = 8
"""What a file of unsigned bytes says of its type, in the third byte; the fourth is the number of axes."""


def open_fashion_mnist(request: Request) -> Sources:
    """Return Fashion-MNIST's training and test images, of the first folder that has them; downloads them if need be."""
    folder = next((place for place in (request.root, DEBIAN) if _path(place, "train", "images", 3).is_file()), None)
    parts = [_read(folder, part) for part in PARTS] if folder else _downloaded(request.root)
    train, test = (ArraySource(images[:, None], targets, FashionMNIST.classes) for images, targets in parts)
    return Sources(train, None, test)


def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = _array(_path(folder, part, "images", 3), 3)
    targets = _array(_path(folder, part, "labels", 1), 1)
    if images.shape[1:] != (28, 28) or len(images) != len(targets) or targets.max(initial=0) > 9:
        raise DataError(
            f"expected images of 28x28 pixels and as many labels from 0 to 9 in {folder}; got others ({part})"
        )
    return torch.from_numpy(images), torch.from_numpy(targets)


def _path(folder: Path, part: str, what: str, axes: int) -> Path:
    return folder / f"{part}-{what}-idx{axes}-ubyte.gz"


def _array(path: Path, axes: int) -> np.ndarray:
    """Return the bytes of a file: two zeros, their type, the number of axes, the size of each, and the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(content, ">i4", axes, 4)
        if content[:4] != bytes((0, 0, TYPE, axes)):
            raise ValueError("its first bytes are others")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"expected bytes with {axes} axes, in gzip, at {path}; {error}") from error


def _downloaded(root: Path) -> list[tuple[Tensor, Tensor]]:
    try:
        parts = [FashionMNIST(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"expected fashion_mnist in {root} (data_root), Debian's package dataset-fashion-mnist, or a connection to "
            f"download it; {reason}"
        ) from error
    return [(part.data, part.targets) for part in parts]
