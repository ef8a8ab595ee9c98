"""Answers to samples beside a reference's answers to the same samples, as a difference with an interval.

Imports no torch, and no SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from exitwise.exiting.arrays import Array
from exitwise.shapes import Bool

LEVEL = 0.95
"""Of intervals."""


class Paired(NamedTuple):
    """How often answers and a reference's differ in being right.

    Attributes:
        gained: samples that the answers have right and the reference wrong.
        lost: samples that the answers have wrong and the reference right.
        samples: all of them.
    """

    gained: int
    lost: int
    samples: int

    @classmethod
    def of(cls, right: Bool[Array, "samples"], reference: Bool[Array, "samples"]) -> Paired:
        """Return it from whether each answer, and each of the reference's, is right."""
        right, reference = np.asarray(right), np.asarray(reference)
        return cls(int((right & ~reference).sum()), int((reference & ~right).sum()), len(right))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Paired:
        """Return it from its fields by name."""
        return cls(*(int(content[name]) for name in cls._fields))

    @property
    def difference(self) -> float:
        """Return accuracy minus the reference's."""
        return (self.gained - self.lost) / self.samples

    @property
    def error(self) -> float:
        """Return the standard error of the difference."""
        spread: float = (self.gained + self.lost) / self.samples - self.difference**2
        return math.sqrt(max(spread, 0.0) / self.samples)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return an interval for the difference on samples to come; see :func:`paired_interval`."""
        low, high = paired_interval(self.gained, self.lost, self.samples, level)
        return float(low), float(high)

    @property
    def is_noise(self) -> bool:
        """Return whether chance alone may have made the difference: the interval holds 0."""
        low, high = self.interval()
        return low <= 0 <= high

    def __str__(self) -> str:
        """Return the difference in points, with its interval: ``-0.3 points [-1.1, +0.4]``."""
        low, high = (signed(end) for end in self.interval())
        return f"{signed(self.difference)} points [{low}, {high}]"


def paired_interval(gained: ArrayLike, lost: ArrayLike, samples: int, level: float = LEVEL) -> tuple[Any, Any]:
    """Return the ends of an interval for the difference of two accuracies on the same samples.

    Wald's with one sample more gained and one more lost (Bonett and Price, Journal of Educational and Behavioral
    Statistics 37, 2012). It keeps its level where few samples differ, or none.

    Args:
        gained, lost: how many samples only the one, and only the other, has right; numbers or arrays of them.
        samples: how many there are.
        level: of the interval.
    """
    one, other = ((np.asarray(count) + 1) / (samples + 2) for count in (gained, lost))
    middle = one - other
    half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt((one + other - middle**2) / (samples + 2))
    return np.maximum(middle - half, -1), np.minimum(middle + half, 1)


def signed(share: float) -> str:
    """Return a difference of shares in points, with its sign: ``+1.2``."""
    return f"{100 * share:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")
