"""Which images leave where: of each class the shares per exit, and the easiest and hardest images as thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from exitwise.data import Split
from exitwise.exiting.outputs import Left

SIDE, LOSSLESS_SIDE, QUALITY, STRIP = 64, 32, 75, 8
"""Longest side of a thumbnail in pixels; up to which it is a PNG; the quality of the JPEG that it is beyond; height of
a signal's."""


class Picture(NamedTuple):
    """An image and how it left: its name, what it was taken for and whether rightly, exit (1-based), confidence, and a
    thumbnail as a data URI."""

    name: str
    prediction: str
    correct: bool
    exit: int
    confidence: float
    uri: str


class ClassFigures(NamedTuple):
    """The images of one class.

    Attributes:
        name: of the class.
        size: how many there are.
        accuracy: share classified correctly; None without images.
        shares: share leaving at each exit, K numbers.
        easiest: the first to leave, by exit, then by confidence.
        hardest: the last ones, the very last first.
    """

    name: str
    size: int
    accuracy: float | None
    shares: tuple[float, ...]
    easiest: list[Picture]
    hardest: list[Picture]


def class_figures(split: Split, left: Left, exits: int, pictures: Sequence[int]) -> list[ClassFigures]:
    """Figures of each class on a split.

    Args:
        split: N images.
        left: how they left.
        exits: K.
        pictures: for each class, how many easiest and as many hardest images to show.
    """
    classes = split.source.classes
    return [_of_class(split, left, exits, label, pictures[label]) for label in range(len(classes))]


def _of_class(split: Split, left: Left, exits: int, label: int, pictures: int) -> ClassFigures:
    members = np.flatnonzero(split.targets.numpy() == label)
    by_confidence = members[np.argsort(-left.confidences[members], kind="stable")]
    ordered = by_confidence[np.argsort(left.exits[by_confidence], kind="stable")].tolist()
    middle = (len(ordered) + 1) // 2  # no image is both
    easiest, hardest = ordered[:middle][:pictures], ordered[middle:][::-1][:pictures]
    count = max(len(members), 1)
    shares = np.bincount(left.exits[members], minlength=exits) / count
    right = float((left.predictions[members] == label).mean()) if len(members) else None
    return ClassFigures(
        split.source.classes[label],
        len(members),
        right,
        tuple(shares.tolist()),
        [_picture(split, left, position) for position in easiest],
        [_picture(split, left, position) for position in hardest],
    )


def _picture(split: Split, left: Left, position: int) -> Picture:
    prediction = int(left.predictions[position])
    return Picture(
        split.name(position),
        split.source.classes[prediction],
        prediction == int(split.targets[position]),
        int(left.exits[position]) + 1,
        left.confidences[position].item(),
        thumbnail(split.source.read(int(split.indices[position]))),
    )


def thumbnail(image: Tensor) -> str:
    """Return an image, uint8 (channels, height, width), as a small data URI; a signal, of one row, as a strip."""
    picture: Image.Image = to_pil_image(image.expand(-1, STRIP, -1) if image.shape[1] == 1 else image)
    picture.thumbnail((SIDE, SIDE))
    kind = "png" if max(picture.size) <= LOSSLESS_SIDE else "jpeg"
    content = io.BytesIO()
    picture.save(content, kind, quality=QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
