"""Whether confidences can be believed: reliability diagrams and the expected calibration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


def reliability(confidences: npt.NDArray[Any], correct: npt.NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Compare confidences with how often they are right (Guo et al., "On calibration of modern neural networks").

    Args:
        confidences: largest probabilities, in [0, 1], (N).
        correct: whether the prediction is right, bool (N).
        bins: how many intervals (i / bins, (i + 1) / bins] of equal width; 0 belongs to the first.
    """
    confidences = confidences.astype(np.float64)
    place = (np.ceil(confidences * bins).astype(np.int64) - 1).clip(0, bins - 1)
    filled = []
    for number in np.unique(place).tolist():
        inside = place == number
        filled.append(Bin(int(inside.sum()), float(confidences[inside].mean()), float(correct[inside].mean())))
    error = sum(each.size * abs(each.confidence - each.accuracy) for each in filled) / len(confidences)
    return Reliability(tuple(filled), error)
