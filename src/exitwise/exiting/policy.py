"""The exit rule, written once. Calibration, evaluation, the runner and exports all call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from exitwise.exiting.confidence import Confidence
from exitwise.exiting.rule import Thresholds, finite_thresholds

MAX_PROBABILITY = Confidence()


@dataclass(frozen=True)
class ExitPolicy:
    """A sample leaves at the first exit whose threshold its confidence reaches; the last exit takes the rest.

    Attributes:
        thresholds: one per exit but the last, each a confidence in [0, 1], or None: nobody can leave there.
        confidence: how confidence is read from logits.

    Raises:
        ValueError: for a threshold that is not a finite number, or temperatures of another number of exits.
    """

    thresholds: Thresholds
    confidence: Confidence

    def __init__(self, thresholds: Sequence[float | None], confidence: Confidence = MAX_PROBABILITY) -> None:
        values = finite_thresholds(thresholds)
        temperatures = confidence.temperatures
        if temperatures is not None and len(temperatures) != len(values) + 1:
            raise ValueError(f"expected {len(values) + 1} temperatures, one per exit; got {len(temperatures)}")
        object.__setattr__(self, "thresholds", values)
        object.__setattr__(self, "confidence", confidence)

    @property
    def exits(self) -> int:
        """Number of exits K."""
        return len(self.thresholds) + 1

    def read_by(self, confidence: Confidence) -> ExitPolicy:
        """The same thresholds on another reading of the logits."""
        return ExitPolicy(self.thresholds, confidence)

    def can_leave(self, exit: int) -> bool:
        """Whether any sample at all can leave at this exit (0-based)."""
        return exit == self.exits - 1 or self.thresholds[exit] is not None

    def leaves(self, confidences: Tensor, exit: int) -> Tensor:
        """Which of the samples that reached this exit (0-based) leave there: bool (B) from confidences (B)."""
        if exit == self.exits - 1:
            return torch.ones_like(confidences, dtype=torch.bool)
        threshold = self.thresholds[exit]
        if threshold is None:
            return torch.zeros_like(confidences, dtype=torch.bool)
        return confidences >= threshold

    def leaves_alone(self, confidence: Tensor, exit: int) -> bool:
        """:meth:`leaves` for a batch of one, as numbers: a comparison of tensors takes several times as long."""
        if exit == self.exits - 1:
            return True
        threshold = self.thresholds[exit]
        return threshold is not None and confidence.item() >= _rounded(threshold, confidence.dtype)

    def exit_of(self, confidences: Tensor) -> Tensor:
        """The exit (0-based) of each sample, int64 (N), from its confidences at all exits (N, K).

        Raises:
            ValueError: if the confidences are for another number of exits.
        """
        if confidences.shape[1] != self.exits:
            raise ValueError(f"expected confidences of {self.exits} exits; got {confidences.shape[1]}")
        result = torch.full_like(confidences[:, 0], self.exits - 1, dtype=torch.int64)
        for k in range(self.exits - 2, -1, -1):  # the earliest exit is written last
            if self.can_leave(k):
                result.masked_fill_(self.leaves(confidences[:, k], k), k)
        return result


@lru_cache(1024)
def _rounded(number: float, dtype: torch.dtype) -> float:
    """What a comparison with tensors of ``dtype`` takes a number for."""
    return torch.tensor(number, dtype=dtype).item()
