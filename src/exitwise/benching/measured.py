"""What was measured of networks in their forms: which samples they are right on, and how long each batch took.

Two are compared sample by sample and batch by batch, for what they share says nothing of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.evaluation.outputs import mean_and_half_width
from exitwise.exiting.paired import Paired
from exitwise.runs.records.bench import FormName, Gap, Network, Row, Saved

Correct = Mapping[tuple[Network, FormName], NDArray[np.bool_] | None]
"""Whether a network in a form is right on each test sample; None where unknown."""

Seconds = Mapping[tuple[Network, FormName, int], NDArray[np.float64]]
"""By batch size too: seconds of each call, (passes, batches); of all the same batches, as far as they go."""


class Speed(NamedTuple):
    """How many times as fast one is as another, and half the width of the 95 % interval of that."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}x (± {self.half:.2f})"

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


class Measured(NamedTuple):
    """All that was measured, to compare rows by."""

    correct: Correct
    seconds: Seconds

    def gap(self, one: Row, other: Row) -> Gap | None:
        """Return how much more accurate the first is, paired by sample; None where unknown."""
        first, second = (self.correct[each.network, each.form] for each in (one, other))
        if first is None or second is None:
            return None
        if one is other:
            return Gap(0.0, 0.0)
        paired = Paired.of(first, second)
        low, high = paired.interval()
        return Gap(paired.difference, (high - low) / 2)

    def speed(self, one: Row, other: Row) -> Speed:
        """Return how many times as fast the first is, with an interval from the spread over batches.

        A batch counts by the median over passes of what the second takes more than the first at equal speed: what
        slows both at that moment cancels out, and a single hiccup says nothing.
        """
        ratio = other.mean / one.mean
        first, second = (self.seconds[each.network, each.form, each.batch_size] for each in (one, other))
        batches = min(first.shape[1], second.shape[1])
        off = np.median(second[:, :batches] - ratio * first[:, :batches], axis=0)
        return Speed(ratio, float(mean_and_half_width(off)[1] or 0) / one.mean)

    def saved(self, row: Row, full: Row | None) -> Saved | None:
        """Return which share of the full network's time another row saves; None of that network itself."""
        if full is None or row is full:
            return None
        took = self.speed(full, row)
        return Saved(1 - took.mean, took.half)
