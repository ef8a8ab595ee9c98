"""Digits of 8x8 pixels that come with exitwise (their source and licence: digits.txt)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exitwise.data.sources.base import ArraySource, Request, Sources


class Digits(NamedTuple):
    """Images, uint8 (1797, 8, 8) of 0 to 16, and the digits that they show, int64 (1797)."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]


def read_digits() -> Digits:
    """Return all digits."""
    with np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False) as arrays:
        return Digits(arrays["images"], arrays["targets"].astype(np.int64))


def open_digits(request: Request) -> Sources:
    """Return all digits as training images."""
    images, targets = read_digits()
    pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8))[:, None]
    digits = ArraySource(pixels, torch.from_numpy(targets), [str(digit) for digit in range(10)])
    return Sources(digits, None, None)
