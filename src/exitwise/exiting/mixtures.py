"""What the probabilities of a mixture are judged by. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from exitwise.shapes import Float, Float64, Int

LEAST = 1e-12
"""Probability that one of 0 counts as."""

TargetProbabilities: TypeAlias = Callable[
    [float], tuple[Float64[np.ndarray, "samples"], Float64[np.ndarray, "samples"]]
]
"""From a temperature to the probability of each sample's target, and that one's derivative by log temperature."""


def target_probabilities(
    logits: Float[np.ndarray, "samples classes"], targets: Int[np.ndarray, "samples"]
) -> TargetProbabilities:
    """Return the probabilities of targets as a function of the temperature."""
    scores = logits.astype(np.float64)
    own = np.take_along_axis(scores, targets[:, None], 1)[:, 0]
    highest = scores.max(axis=1)

    def at(temperature: float) -> tuple[Float64[np.ndarray, "samples"], Float64[np.ndarray, "samples"]]:
        odds = np.exp((scores - highest[:, None]) / temperature)
        total = odds.sum(axis=1)
        found = np.exp((own - highest) / temperature) / total
        return found, found * ((odds * scores).sum(axis=1) / total - own) / temperature

    return at


def log_loss(probabilities: Float64[np.ndarray, "samples"]) -> float:
    """Return the mean negative log-likelihood of targets that have these probabilities."""
    return float(-np.log(np.maximum(probabilities, LEAST)).mean())
