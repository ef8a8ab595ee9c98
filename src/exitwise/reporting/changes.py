"""What leaving early changes: images lost and won, and whose answers become which, beside the yardstick's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.data import Split
from exitwise.exiting.outputs import Left
from exitwise.reporting.pictures import Picture, picture

MOST_SWAPS = 15
"""Changes of answer that are listed at most."""


class Changed(NamedTuple):
    """An image lost or won: how it left, its class, and the yardstick's answer."""

    picture: Picture
    target: str
    standard: str


class Swap(NamedTuple):
    """Images that the yardstick takes for one class and the early answer for another: how many, lost and won ones."""

    standard: str
    early: str
    images: int
    lost: int
    won: int


class Changes(NamedTuple):
    """Early answers beside the yardstick's.

    Attributes:
        right: by both.
        lost: by the early answer, the most confident first; some of them.
        won: by it; some of them.
        wrong: by both.
        swaps: the commonest changes of answer.
        lost_count, won_count: of all.
        swapped: images with another answer.
    """

    right: int
    wrong: int
    lost_count: int
    won_count: int
    lost: list[Changed]
    won: list[Changed]
    swaps: list[Swap]
    swapped: int


def changes(split: Split, left: Left, standard: NDArray[np.int64], pictures: int) -> Changes:
    """Compare early answers with a yardstick's on a split.

    Args:
        split: N images.
        left: how they left.
        standard: the yardstick's answers (N).
        pictures: how many lost, and as many won images to show.
    """
    targets, classes = split.targets.numpy(), split.source.classes
    early, reference = left.predictions == targets, standard == targets
    lost, won = reference & ~early, early & ~reference

    def some(which: NDArray[np.bool_]) -> list[Changed]:
        places = np.flatnonzero(which)
        first = places[np.argsort(-left.confidences[places], kind="stable")][:pictures]
        return [
            Changed(picture(split, left, place), classes[targets[place]], classes[standard[place]])
            for place in first.tolist()
        ]

    return Changes(
        int((early & reference).sum()),
        int((~early & ~reference).sum()),
        int(lost.sum()),
        int(won.sum()),
        some(lost),
        some(won),
        _swaps(left.predictions, standard, lost, won, classes),
        int((left.predictions != standard).sum()),
    )


def _swaps(
    early: NDArray[np.int64],
    standard: NDArray[np.int64],
    lost: NDArray[np.bool_],
    won: NDArray[np.bool_],
    classes: Sequence[str],
) -> list[Swap]:
    differ = early != standard
    pairs, place, counts = np.unique(
        np.stack([standard[differ], early[differ]]), axis=1, return_inverse=True, return_counts=True
    )
    gone, come = (np.bincount(place.ravel(), weights=each[differ], minlength=len(counts)) for each in (lost, won))
    order = np.argsort(-counts, kind="stable")[:MOST_SWAPS].tolist()
    return [Swap(classes[pairs[0, i]], classes[pairs[1, i]], int(counts[i]), int(gone[i]), int(come[i])) for i in order]
