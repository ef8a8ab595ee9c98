"""How often an exit was right when it was as sure as now (thresholds in accuracy, as PCEE has them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy, constant, largest, namespace
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Bool, Float, Int

Knots = tuple[tuple[float, float], ...]

SHARE = 0.01
"""Of the largest probability in the confidence, so that samples of the same accuracy keep their order."""

GROUP, STEP = 10, 0.002
"""Samples, and probabilities, that the regression does not tell apart: else a last digit could change an accuracy."""


@dataclass(frozen=True)
class Accuracy(Measure):
    """The held-out accuracy of an exit at a largest probability like this one's, by isotonic regression.

    Since it means the same at every exit, all exits have the same threshold, an accuracy.

    Attributes:
        knots: of each exit, largest probabilities and accuracies there, both rising from 0 to 1 or within; accuracies
            between them lie on straight lines. None: the largest probability is taken for the accuracy.
    """

    name = "accuracy"
    family = "same"
    by_exit = ("knots",)

    knots: tuple[Knots, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for exit, knots in enumerate(self.knots or ()):
            places, values = np.array(knots, dtype=float).T
            if len(places) < 2 or not (np.diff(places) > 0).all() or not (np.diff(values) >= 0).all():
                raise ValueError(f"expected rising pairs as knots of exit {exit + 1}; got {knots}")

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        sure, prediction = largest(self.probabilities(logits, exit))
        if self.knots is None:
            return Reading(sure, prediction)
        places, values = zip(*self.knots[exit], strict=True)
        widths = np.diff(places)
        beyond = sure[:, None] - constant(places[:-1], sure)
        within = namespace(sure).clip(beyond, constant([0.0] * len(widths), sure), constant(widths.tolist(), sure))
        accuracy = values[0] + (within * constant((np.diff(values) / widths).tolist(), sure)).sum(1)
        return Reading((1 - SHARE) * accuracy + SHARE * sure, prediction)

    def fit(
        self, logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"], exit_costs: Sequence[float]
    ) -> Self:
        confidences, predictions = map(as_numpy, type(self)(self.temperatures).read_all(logits))
        right = predictions == as_numpy(targets)[:, None]
        return type(self)(self.temperatures, tuple(_knots(*pair) for pair in zip(confidences.T, right.T, strict=True)))


def _knots(sure: Float[np.ndarray, "samples"], right: Bool[np.ndarray, "samples"]) -> Knots:
    """Return the middle of each step of the isotonic regression, and the ends."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(sure, kind="stable")
    parts = np.array_split(order, max(1, len(order) // GROUP))
    means = np.array([sure[part].mean() for part in parts], dtype=np.float64)
    places, groups = np.unique(np.round(means / STEP) * STEP, return_inverse=True)
    counts = np.bincount(groups, weights=[len(part) for part in parts])
    shares = np.bincount(groups, weights=[right[part].sum() for part in parts]) / counts
    steps = isotonic_regression(shares, weights=counts)
    first = steps.blocks[:-1]
    middles = np.add.reduceat(counts * places, first) / np.add.reduceat(counts, first)
    heights = steps.x[first]
    inner = [(x, y) for x, y in zip(middles.tolist(), heights.tolist(), strict=True) if 0 < x < 1]
    return (0.0, float(heights[0])), *inner, (1.0, float(heights[-1]))
