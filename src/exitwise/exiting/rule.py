"""The exit rule, once: a sample leaves at the first exit whose threshold its confidence reaches.

For NumPy arrays and torch tensors alike; imports no torch. Exits count from 0, and the last one takes what is left.
Thresholds are rounded to the confidences' type before they are compared. What is not a number reaches none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from exitwise.budgets import MOST
from exitwise.exiting.arrays import Array, namespace, rounded
from exitwise.shapes import Bool, Float, Int

Thresholds = tuple[float | None, ...]
"""One per exit but the last; None where nobody can leave."""


Family = Literal["geometric", "same"]
"""Of thresholds with one parameter: for shares of samples that fall or rise by a factor from exit to exit; or the same
threshold at every exit."""


def finite_thresholds(thresholds: Sequence[float | None]) -> Thresholds:
    """Return thresholds as floats.

    Raises:
        ValueError: for one that is not a finite number.
    """
    if any(t is not None and not abs(t) <= MOST for t in thresholds):
        raise ValueError(f"thresholds must be finite numbers, or None where nobody can leave; got {list(thresholds)}")
    return tuple(None if t is None else float(t) for t in thresholds)


def leaving_at(exit: int, exits: int) -> Thresholds:
    """Return thresholds by which every sample leaves at one exit, and is asked at those before."""
    return tuple(NEVER if k < exit else ALWAYS for k in range(exits - 1))


NEVER, ALWAYS = 2.0, -1.0
"""Thresholds that no confidence, and that every confidence, reaches."""


def can_leave(exit: int, thresholds: Thresholds) -> bool:
    """Return whether any sample at all can leave at an exit."""
    return exit == len(thresholds) or thresholds[exit] is not None


def leaves(confidences: Float[Array, "samples"], exit: int, thresholds: Thresholds) -> Bool[Array, "samples"]:
    """Return which of the samples that reached an exit leave there, from their confidences there."""
    if exit == len(thresholds):
        return namespace(confidences).full_like(confidences, True, dtype=bool)
    threshold = thresholds[exit]
    if threshold is None:
        return namespace(confidences).full_like(confidences, False, dtype=bool)
    return confidences >= rounded(threshold, confidences.dtype)


def leaves_alone(confidence: Float[Array, "1"], exit: int, thresholds: Thresholds) -> bool:
    """Return :func:`leaves` for a batch of one, as a number: a comparison of tensors takes several times as long."""
    if exit == len(thresholds):
        return True
    threshold = thresholds[exit]
    return threshold is not None and confidence.item() >= rounded(threshold, confidence.dtype)


def answered(confidences: Float[Array, "samples"], abstain_below: float | None) -> Bool[Array, "samples"]:
    """Return which samples are answered, from their confidences where they leave; of the others nothing is claimed.

    What is not a number is not; without ``abstain_below`` all else is.
    """
    if abstain_below is None:
        return namespace(confidences).isfinite(confidences)
    return confidences >= rounded(abstain_below, confidences.dtype)


def exits_taken(confidences: Float[Array, "samples exits"], thresholds: Thresholds) -> Int[Array, "samples"]:
    """Return the exit of each sample from its confidences at all exits.

    Raises:
        ValueError: if the confidences are for another number of exits.
    """
    last = len(thresholds)
    if confidences.shape[1] != last + 1:
        raise ValueError(f"expected confidences of {last + 1} exits; got {confidences.shape[1]}")
    arrays = namespace(confidences)
    taken = arrays.full_like(confidences[:, 0], last, dtype=arrays.int64)
    for exit in range(last - 1, -1, -1):  # the earliest exit is written last
        if can_leave(exit, thresholds):
            taken = arrays.where(leaves(confidences[:, exit], exit, thresholds), exit, taken)
    return taken
