"""The mixture of the exits' probabilities so far that makes held-out targets likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy, constant, largest, namespace
from exitwise.exiting.measures.base import Measure, Reading, State
from exitwise.exiting.mixtures import LEAST, TargetProbabilities, log_loss, target_probabilities
from exitwise.exiting.temperatures import TEMPERATURES, likeliest
from exitwise.shapes import Float, Float64, Int

RIDGE = 8.0
"""Of the distance to equal weights, squared, against the log-likelihood of all samples: a normal prior of width 1/4."""


@dataclass(frozen=True)
class FittedEnsemble(Measure):
    """The largest of p_k = sum of a_kj softmax(o_j / T_j) over j up to k; its class is the answer.

    Attributes:
        weights: a_k1, ..., a_kk of each exit k, none negative, with sum 1; None: all alike. They and T_k are fitted one
            exit after the other by negative log-likelihood, with a ridge towards equal weights.
    """

    name = "fitted-ensemble"
    needs_every_exit = True
    fits_temperatures = True
    by_exit = ("weights",)

    weights: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for exit, row in enumerate(self.weights or ()):
            if len(row) != exit + 1 or not min(row) >= 0 or not abs(sum(row) - 1) < 1e-6:
                raise ValueError(f"expected {exit + 1} weights of 0 or more that sum to 1; got {row}")

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        all_of_them = self.probabilities(logits, exit)[:, None]
        if state is not None:
            all_of_them = namespace(logits).concatenate([state["probabilities"], all_of_them], 1)
        weights = [1 / (exit + 1)] * (exit + 1) if self.weights is None else self.weights[exit]
        mixed = (all_of_them * constant(weights, all_of_them)[:, None]).sum(1)
        return Reading(*largest(mixed), {"probabilities": all_of_them}, mixed)

    def fit(
        self, logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"], exit_costs: Sequence[float]
    ) -> Self:
        scores, classes = as_numpy(logits), as_numpy(targets)
        weights: list[tuple[float, ...]] = []
        temperatures: list[float] = []
        before = np.zeros((len(classes), 0))
        for k in range(scores.shape[1]):
            here = target_probabilities(scores[:, k], classes)
            given = None if self.temperatures is None else self.temperatures[k]
            row, temperature = _mixture(before, here, given)
            weights.append(row)
            temperatures.append(temperature)
            before = np.column_stack([before, here(temperature)[0]])
        return type(self)(tuple(temperatures), tuple(weights))


def _mixture(
    before: Float64[np.ndarray, "samples before"], here: TargetProbabilities, given: float | None
) -> tuple[tuple[float, ...], float]:
    """Return the weights at one exit and its temperature.

    Args:
        before: targets' probabilities at the exits before.
        here: those at this exit.
        given: its temperature; None: it is fitted too.
    """
    from scipy.optimize import minimize

    samples, parts = len(before), before.shape[1] + 1
    even = np.full(parts, 1 / parts)
    start = given or likeliest(lambda log_t: log_loss((before.sum(axis=1) + here(math.exp(log_t))[0]) / parts))
    if parts == 1:
        return (1.0,), start

    def loss(values: Float64[np.ndarray, "values"]) -> tuple[float, Float64[np.ndarray, "values"]]:
        weights = values[:-1]
        probabilities, slopes = here(math.exp(values[-1]))
        each = np.column_stack([before, probabilities])
        mixed = np.maximum(each @ weights, LEAST)
        far = weights - even
        gradient = np.append(
            -(each / mixed[:, None]).mean(axis=0) + 2 * RIDGE / samples * far, -(weights[-1] * slopes / mixed).mean()
        )
        return float(-np.log(mixed).mean() + RIDGE / samples * (far @ far)), gradient

    limits = TEMPERATURES if given is None else (given, given)
    found = minimize(
        loss,
        [*even, math.log(start)],
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * parts + [(math.log(limits[0]), math.log(limits[1]))],
        constraints={"type": "eq", "fun": lambda values: values[:-1].sum() - 1, "jac": lambda _: [*[1] * parts, 0]},
        options={"ftol": 1e-10, "maxiter": 200},
    )
    weights = np.maximum(found.x[:-1], 0)
    return tuple((weights / weights.sum()).tolist()), given or math.exp(found.x[-1])
