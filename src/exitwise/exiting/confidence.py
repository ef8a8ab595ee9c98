"""How sure an exit is of its answer: what the exit rule compares with its thresholds.

Functions of logits; knows neither thresholds nor networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURES = (0.05, 20.0)
"""Least and largest that is fitted."""

Measure = Literal["max-probability", "margin", "entropy", "patience"]


class Reading(NamedTuple):
    """What exits said of some samples so far.

    Attributes:
        confidence: at the exit just read, in [0, 1], (B).
        prediction: class index there, int64 (B).
        streak: how many exits right before it said the same, int64 (B); None if the measure does not ask.
    """

    confidence: Tensor
    prediction: Tensor
    streak: Tensor | None = None

    def select(self, index: Tensor) -> Reading:
        """The reading of some of the samples."""
        streak = None if self.streak is None else self.streak[index]
        return Reading(self.confidence[index], self.prediction[index], streak)


@dataclass(frozen=True)
class Confidence:
    """A measure of confidence.

    Attributes:
        measure: ``max-probability``: of the softmax; ``margin``: the two largest probabilities' difference;
            ``entropy``: 1 - entropy / log C; ``patience``: how many exits before this one agree with it (Zhou et al.,
            NeurIPS 2020), the largest probability deciding among equals, scaled to [0, 1].
        temperatures: what each exit's logits are divided by, K numbers; None for 1 throughout.

    Raises:
        ValueError: for an unknown measure, or a temperature that is not positive.
    """

    measure: Measure = "max-probability"
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure must be one of {', '.join(get_args(Measure))}; got {self.measure!r}")
        if self.temperatures is not None and not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be positive numbers; got {self.temperatures}")

    @property
    def needs_every_exit(self) -> bool:
        """Whether exits must be read at which nobody can leave."""
        return self.measure == "patience"

    def read(self, logits: Tensor, exit: int, before: Reading | None = None) -> Reading:
        """Read an exit (0-based): logits (B, C), and what the exit before it said of the same samples."""
        if self.temperatures is not None:
            logits = logits / self.temperatures[exit]
        probabilities = logits.softmax(dim=-1)
        if self.measure == "margin":
            largest, classes = probabilities.topk(2, dim=-1)
            return Reading(largest[..., 0] - largest[..., 1], classes[..., 0])
        confidence, prediction = probabilities.max(dim=-1)
        if self.measure == "entropy":
            entropy = -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
            return Reading(1 - entropy / math.log(logits.shape[-1]), prediction)
        if self.measure == "patience":
            if before is None:
                streak = torch.zeros_like(prediction)
            else:
                assert before.streak is not None
                streak = torch.where(prediction == before.prediction, before.streak + 1, 0)
            return Reading((streak + confidence) / (exit + 1), prediction, streak)
        return Reading(confidence, prediction)

    def read_all(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Confidences and predictions (N, K) of all exits, from logits (N, K, C)."""
        readings: list[Reading] = []
        for exit in range(logits.shape[1]):
            readings.append(self.read(logits[:, exit], exit, readings[-1] if readings else None))
        return (
            torch.stack([reading.confidence for reading in readings], dim=1),
            torch.stack([reading.prediction for reading in readings], dim=1),
        )


def fit_temperatures(logits: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The temperature of each exit that makes held-out targets likeliest (Guo et al., ICML 2017).

    Args:
        logits: of N calibration samples at K exits, (N, K, C).
        targets: class indices (N).

    Returns:
        K numbers within [0.05, 20].

    Raises:
        ValueError: without samples.
    """
    if len(targets) == 0:
        raise ValueError("temperatures need at least one sample; got none")
    return tuple(_fit(logits[:, k].double(), targets) for k in range(logits.shape[1]))


def bound_of(temperature: float) -> float | None:
    """The bound of the search that a fitted temperature lies at; its confidences say little then."""
    return next((bound for bound in TEMPERATURES if abs(temperature / bound - 1) < 0.01), None)


def _fit(logits: Tensor, targets: Tensor) -> float:
    """By golden section over log T: the likelihood has one peak, being concave in 1 / T."""
    low, high = map(math.log, TEMPERATURES)
    ratio = (math.sqrt(5) - 1) / 2

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), targets).item()

    for _ in range(40):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if loss(first) <= loss(second):
            high = second
        else:
            low = first
    return math.exp((low + high) / 2)
