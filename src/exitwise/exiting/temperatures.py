"""Temperatures: what logits are divided by, so that probabilities can be believed. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy
from exitwise.shapes import Float, Float64, Int

TEMPERATURES = (0.05, 20.0)
"""Least and largest that is fitted."""


def fit_temperatures(
    logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"]
) -> tuple[float, ...]:
    """Return the temperature of each exit that makes held-out targets likeliest (Guo et al., ICML 2017).

    Args:
        logits: of calibration samples.
        targets: class indices.

    Returns:
        A number for each exit, within [0.05, 20].

    Raises:
        ValueError: without samples.
    """
    if len(targets) == 0:
        raise ValueError("temperatures need at least one sample; got none")
    scores, classes = as_numpy(logits), as_numpy(targets)
    return tuple(_fit(scores[:, k].astype(np.float64), classes) for k in range(scores.shape[1]))


def bound_of(temperature: float) -> float | None:
    """Return the bound of the search that a fitted temperature lies at, if any; its confidences say little then."""
    return next((bound for bound in TEMPERATURES if abs(temperature / bound - 1) < 0.01), None)


def _fit(logits: Float64[np.ndarray, "samples classes"], targets: Int[np.ndarray, "samples"]) -> float:
    """Return the likeliest temperature, searched over log T: the likelihood has one peak, being concave in 1 / T."""
    below = logits - logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(below, targets[:, None], 1)[:, 0]

    def loss(log_t: float) -> float:
        t = math.exp(log_t)
        return float((np.log(np.exp(below / t).sum(axis=1)) - chosen / t).mean())

    return likeliest(loss)


def likeliest(loss: Callable[[float], float]) -> float:
    """Return the temperature with the least loss, a function of its logarithm with one valley."""
    from scipy.optimize import minimize_scalar

    bounds = tuple(map(math.log, TEMPERATURES))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)
