"""Whether confidences can be believed: reliability diagrams and the expected calibration error."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

BINS = 15


class Bin(NamedTuple):
    """The samples of one interval of confidence: how many, their mean confidence, and the share that is right."""

    size: int
    confidence: float
    accuracy: float


class Reliability(NamedTuple):
    """A reliability diagram.

    Attributes:
        bins: those that hold samples, by rising confidence.
        error: expected calibration error, the mean distance of confidence and accuracy over the samples' bins.
    """

    bins: tuple[Bin, ...]
    error: float


def reliability(confidences: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """Compare confidences with how often they are right (Guo et al., "On calibration of modern neural networks").

    Args:
        confidences: largest probabilities, in [0, 1], (N).
        correct: whether the prediction is right, bool (N).
        bins: how many intervals (i / bins, (i + 1) / bins] of equal width; 0 belongs to the first.
    """
    confidences = confidences.double()
    place = ((confidences * bins).ceil().long() - 1).clamp(0, bins - 1)
    filled = []
    for number in place.unique().tolist():
        inside = place == number
        filled.append(Bin(int(inside.sum()), confidences[inside].mean().item(), correct[inside].double().mean().item()))
    error = sum(each.size * abs(each.confidence - each.accuracy) for each in filled) / len(confidences)
    return Reliability(tuple(filled), error)
