"""Digits of 8x8 pixels that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from exitwise.data.sources.base import ArraySource, Request, Sources


def open_digits(request: Request) -> Sources:
    """Return all digits as training images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    digits = ArraySource(images, torch.from_numpy(bunch.target), [str(digit) for digit in range(10)])
    return Sources(digits, None, None)
