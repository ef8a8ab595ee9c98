"""Whether a later exit's answer is worth its cost, learned on held-out samples (as Jitkrittum et al., 2023, defer)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy, constant, entropy, largest, namespace, two_largest
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.shapes import Bool, Float, Float64, Int

Coefficients = tuple[tuple[float, ...], ...]

FEATURES = 6
"""Of an answer: largest probability, its distance to the second, its log odds, evenness, whether the exit before gives
the same class, how sure that one was."""

SURE = 1e-3
"""Added to a probability and to what it lacks of 1, so that its odds are finite."""

LEAST_COST = 1e-6
"""Share of the full network's cost that going on costs at least."""


@dataclass(frozen=True)
class Deferral(Measure):
    """How little accuracy a later exit promises for its cost: 1/2 - r / (2 + 2 |r|), where r is the largest gain in the
    probability of being right by share of the full network's cost, over the exits still to come.

    The probabilities are logistic regressions on what this exit and the one before say. All exits have the same
    threshold, a price of compute. At the last exit it is the probability of being right there.

    Attributes:
        coefficients: of each exit k, for this and each later exit: the intercept, then one of each feature. None: the
            largest probability is the confidence.
        shares: cost of leaving at each exit, as a share of the last one's.
    """

    name = "deferral"
    needs_every_exit = True
    family = "same"
    by_exit = ("coefficients", "shares")

    coefficients: tuple[Coefficients, ...] | None = None
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for exit, rows in enumerate(self.coefficients or ()):
            if len(rows) != len(self.coefficients or ()) - exit or any(len(row) != 1 + FEATURES for row in rows):
                raise ValueError(f"expected {1 + FEATURES} coefficients for exit {exit + 1} and each later one")
            if not np.isfinite(rows).all():
                raise ValueError(f"coefficients must be finite numbers; got {rows}")
        if (self.coefficients is None) != (self.shares is None):
            raise ValueError("expected coefficients and shares, or neither")
        if not all(0 < share < math.inf for share in self.shares or ()):
            raise ValueError(f"shares must be positive numbers; got {self.shares}")

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        features, carried = self._look(logits, exit, state)
        sure, prediction = carried["sure"], carried["prediction"]
        if self.coefficients is None or self.shares is None:
            return Reading(sure, prediction, carried)
        rows = np.array(self.coefficients[exit])
        scores = features @ constant(rows[:, 1:].T.tolist(), features) + constant(rows[:, 0].tolist(), features)
        right = (1 + namespace(scores).tanh(scores / 2)) / 2
        if len(rows) == 1:
            return Reading(right[:, 0], prediction, carried)
        costs = [max(later - self.shares[exit], LEAST_COST) for later in self.shares[exit + 1 :]]
        gain, _ = largest((right[:, 1:] - right[:, :1]) / constant(costs, right))
        return Reading(0.5 - gain / (2 + 2 * abs(gain)), prediction, carried)

    def _look(
        self, logits: Float[Array, "samples classes"], exit: int, state: State
    ) -> tuple[Float[Array, "samples features"], dict[str, Array]]:
        """Return what an answer is judged by, and what to remember of it."""
        arrays = namespace(logits)
        probabilities = self.probabilities(logits, exit)
        top, classes = two_largest(probabilities)
        sure, prediction = top[:, 0], classes[:, 0]
        agrees, before = arrays.zeros_like(sure), arrays.zeros_like(sure)
        if state is not None:
            agrees = arrays.where(prediction == state["prediction"], arrays.ones_like(sure), agrees)
            before = state["sure"]
        odds = arrays.log((sure + SURE) / (1 - sure + SURE))
        even = entropy(probabilities) / math.log(logits.shape[-1])
        features = arrays.stack([sure, sure - top[:, 1], odds, even, agrees, before], 1)
        return features, {"prediction": prediction, "sure": sure}

    def fit(
        self, logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"], exit_costs: Sequence[float]
    ) -> Self:
        scores, classes = as_numpy(logits), as_numpy(targets)
        features: list[Float64[np.ndarray, "samples features"]] = []
        answers: list[Int[np.ndarray, "samples"]] = []
        state: State = None
        for exit in range(scores.shape[1]):
            seen, state = self._look(scores[:, exit], exit, state)
            features.append(seen.astype(np.float64))
            answers.append(state["prediction"])
        right = np.stack(answers, 1) == classes[:, None]
        coefficients = tuple(
            tuple(_logistic(features[exit], right[:, later]) for later in range(exit, len(features)))
            for exit in range(len(features))
        )
        return type(self)(self.temperatures, coefficients, tuple(cost / exit_costs[-1] for cost in exit_costs))


def _logistic(
    features: Float64[np.ndarray, "samples features"], right: Bool[np.ndarray, "samples"]
) -> tuple[float, ...]:
    """Return intercept and coefficients of a logistic regression with a ridge of half their squares, over all
    samples."""
    from scipy.optimize import minimize

    inputs = np.column_stack([np.ones(len(features)), features])
    signs = np.where(right, 1.0, -1.0)
    ridge = np.array([0.0, *[1 / len(features)] * features.shape[1]])

    def loss(values: Float64[np.ndarray, "values"]) -> tuple[float, Float64[np.ndarray, "values"]]:
        margins = signs * (inputs @ values)
        missed = (1 - np.tanh(margins / 2)) / 2
        gradient = -(inputs * (signs * missed)[:, None]).mean(axis=0) + ridge * values
        return float(np.logaddexp(0, -margins).mean() + (ridge * values**2).sum() / 2), gradient

    share = (right.sum() + 0.5) / (len(right) + 1)
    start = np.array([math.log(share / (1 - share)), *[0.0] * features.shape[1]])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-10, 10), *[(None, None)] * features.shape[1]])
    return tuple(found.x.tolist())
