"""Answers class by class: who is taken for whom, recall of each class, macro F1, and the five likeliest. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

TOP = 5
"""Likeliest classes among which the right one counts as found."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What answers to labelled samples are, for an exit or a policy.

    Attributes:
        confusion: how many samples of a class (row) were taken for another (column), (C, C).
        top: share of the samples whose class is among the :data:`TOP` likeliest; None where it was not asked for, as of
            no more classes than that.
    """

    confusion: NDArray[np.int64]
    top: float | None = None

    @classmethod
    def of(cls, predictions: NDArray[np.int64], targets: NDArray[np.int64], classes: int, top: float | None) -> Self:
        """Return them from class indices (N)."""
        pairs = np.bincount(targets * classes + predictions, minlength=classes * classes)
        return cls(pairs.reshape(classes, classes).astype(np.int64), top)

    @property
    def recalls(self) -> list[float | None]:
        """Share of each class's samples that is answered rightly; None without samples."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that are there, or answered, of the harmonic mean of precision and recall."""
        sizes = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        known = [each for each in _shares(2 * self.confusion.diagonal(), sizes) if each is not None]
        return sum(known) / len(known)

    def to_json(self) -> dict[str, Any]:
        """Return them as plain values: of the confusion what is not 0, as (class, answer, samples)."""
        places = np.argwhere(self.confusion)
        counts = [[*place, int(self.confusion[tuple(place)])] for place in places.tolist()]
        own = {"top": self.top, "macro_f1": self.macro_f1, "class_accuracy": self.recalls}
        return {**own, "classes": len(self.confusion), "confusion": counts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return them from :meth:`to_json`."""
        confusion = np.zeros((content["classes"],) * 2, dtype=np.int64)
        for label, answer, count in content["confusion"]:
            confusion[label, answer] = count
        return cls(confusion, content["top"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scores) and self.top == other.top and np.array_equal(self.confusion, other.confusion)


def among_top(logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Return whether the right class is among the :data:`TOP` likeliest, bool (N, K), from logits (N, K, C).

    Of equal logits the right class's counts as the largest. None for no more classes than that.
    """
    if logits.shape[-1] <= TOP:
        return None
    own = np.take_along_axis(logits, targets[:, None, None], axis=-1)
    found: NDArray[np.bool_] = (logits > own).sum(axis=-1) < TOP
    return found


def _shares(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[float | None]:
    return [count / size if size else None for count, size in zip(counts.tolist(), sizes.tolist(), strict=True)]
