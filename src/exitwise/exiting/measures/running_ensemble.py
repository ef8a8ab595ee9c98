"""The mean of the exits' probabilities so far, dear exits counting more (Meronen et al., WACV 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy, largest
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.exiting.mixtures import log_loss, target_probabilities
from exitwise.exiting.temperatures import likeliest
from exitwise.shapes import Float, Int


@dataclass(frozen=True)
class RunningEnsemble(Measure):
    """The largest of p_k = sum of c_j softmax(o_j / T_j) over j up to k, by the sum of these c_j; its class is the
    answer.

    Attributes:
        weights: c_j of each exit, by default its share of all exits' costs; None: they count alike. Temperatures are
            fitted one exit after the other, each to make the targets likeliest under the mean so far.
    """

    name = "running-ensemble"
    needs_every_exit = True
    fits_temperatures = True
    by_exit = ("weights",)

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights must be positive numbers; got {self.weights}")

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        mean = self.probabilities(logits, exit)
        if state is not None:
            weights = self.weights or (1.0,) * (exit + 1)
            mean = state["mean"] + (mean - state["mean"]) * (weights[exit] / sum(weights[: exit + 1]))
        return Reading(*largest(mean), {"mean": mean}, mean)

    def fit(
        self, logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"], exit_costs: Sequence[float]
    ) -> Self:
        weights = tuple(cost / sum(exit_costs) for cost in exit_costs)
        temperatures = self.temperatures or _temperatures(as_numpy(logits), as_numpy(targets), weights)
        return type(self)(temperatures, weights)


def _temperatures(
    logits: Float[np.ndarray, "samples exits classes"], targets: Int[np.ndarray, "samples"], weights: Sequence[float]
) -> tuple[float, ...]:
    found: list[float] = []
    before = np.zeros(len(targets))
    for k, weight in enumerate(weights):
        here = target_probabilities(logits[:, k], targets)
        total = sum(weights[: k + 1])

        def loss(log_t: float) -> float:
            return log_loss((before + weight * here(math.exp(log_t))[0]) / total)  # noqa: B023 (called within the turn)

        found.append(likeliest(loss))
        before = before + weight * here(found[-1])[0]
    return tuple(found)
