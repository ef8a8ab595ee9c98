"""Which images leave where: of each class the shares per exit, and the easiest and hardest images as thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from exitwise.data import Split
from exitwise.exiting.outputs import Left
from exitwise.exiting.paired import Paired

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
        full: share that the yardstick classifies correctly; None without images.
        paired: beside the yardstick; None without images.
        macs: mean per image; 0 without images.
        shares: share leaving at each exit, K numbers.
        answered: share that is; None where all are, or without images.
        easiest: the first to leave, by exit, then by confidence.
        hardest: the last ones, the very last first.
    """

    name: str
    size: int
    accuracy: float | None
    full: float | None
    paired: Paired | None
    macs: float
    shares: tuple[float, ...]
    answered: float | None
    easiest: list[Picture]
    hardest: list[Picture]


def class_figures(
    split: Split, left: Left, standard: NDArray[np.int64], exit_macs: Sequence[int], pictures: Sequence[int]
) -> list[ClassFigures]:
    """Figures of each class on a split, those that lose most first.

    Args:
        split: N images.
        left: how they left.
        standard: the yardstick's answers (N).
        exit_macs: cost of leaving at each exit.
        pictures: for each class, how many easiest and as many hardest images to show.
    """
    found = [_of_class(split, left, standard, exit_macs, *each) for each in enumerate(pictures)]
    return sorted(found, key=lambda each: 0.0 if each.paired is None else each.paired.difference)


def _of_class(
    split: Split, left: Left, standard: NDArray[np.int64], exit_macs: Sequence[int], label: int, pictures: int
) -> ClassFigures:
    members = np.flatnonzero(split.targets.numpy() == label)
    by_confidence = members[np.argsort(-left.confidences[members], kind="stable")]
    ordered = by_confidence[np.argsort(left.exits[by_confidence], kind="stable")].tolist()
    middle = (len(ordered) + 1) // 2  # no image is both
    easiest, hardest = ordered[:middle][:pictures], ordered[middle:][::-1][:pictures]
    count = max(len(members), 1)
    shares = np.bincount(left.exits[members], minlength=len(exit_macs)) / count
    right, reference = left.predictions[members] == label, standard[members] == label
    return ClassFigures(
        split.source.classes[label],
        len(members),
        float(right.mean()) if len(members) else None,
        float(reference.mean()) if len(members) else None,
        Paired.of(right, reference) if len(members) else None,
        float((shares * np.array(exit_macs)).sum()),
        tuple(shares.tolist()),
        float(left.answered[members].mean()) if left.answered is not None and len(members) else None,
        [picture(split, left, position) for position in easiest],
        [picture(split, left, position) for position in hardest],
    )


def picture(split: Split, left: Left, position: int) -> Picture:
    """Return an image of a split, and how it left."""
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
