"""Parts of labelled samples, such as classes or groups: what a policy does on each. Imports no torch.

An average may hide a part that pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.paired import LEVEL, Paired
from exitwise.shapes import Bool, Int
from exitwise.shown import percent

ENDS = 2
"""Samples that an interval for a mean adds at each end of what values may be."""


class Estimate(NamedTuple):
    """A mean, and the ends of its interval."""

    mean: float
    low: float
    high: float


class Answers(NamedTuple):
    """What is answered, where a policy may abstain.

    Attributes:
        answered: samples that are.
        right: of those.
        samples: all of them.
    """

    answered: int
    right: int
    samples: int

    @property
    def share(self) -> Estimate:
        """Return the share that is answered, with an interval."""
        return mean_of_counts((0, 1), (self.samples - self.answered, self.answered))

    @property
    def accuracy(self) -> Estimate | None:
        """Return the accuracy of what is answered, with an interval; None where nothing is."""
        return mean_of_counts((0, 1), (self.answered - self.right, self.right)) if self.answered else None

    @classmethod
    def of(cls, answered: Bool[Array, "samples"] | None, right: Bool[Array, "samples"]) -> Answers | None:
        """Return it from which samples are answered, and whether answers are right; None where all are answered."""
        if answered is None:
            return None
        return cls(int(as_numpy(answered).sum()), int((as_numpy(answered) & right).sum()), len(right))

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Answers | None:
        """Return it from its fields by name."""
        return cls(*(int(content[name]) for name in cls._fields)) if content else None

    def said(self, images: str) -> str:
        """Return it in a sentence; ``images`` is what the samples are."""
        answered = f"{percent(self.share.mean)} of {self.samples} {images} are answered"
        if self.accuracy is None:
            return f"{answered}: all confidences lie below the limit."
        right, low, high = self.accuracy
        return f"{answered}, {percent(right)} of them rightly [{100 * low:.1f}, {100 * high:.1f}]."


class Part(NamedTuple):
    """A part of the samples under a policy.

    Attributes:
        name: of the class or group.
        paired: its answers beside the yardstick's.
        right: answers that are right.
        leaving: samples that leave at each exit, K numbers; none in older records, which do not say.
        answers: what is answered; None where all is.
    """

    name: str
    paired: Paired
    right: int
    leaving: tuple[int, ...] = ()
    answers: Answers | None = None

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.paired.samples

    @property
    def accuracy(self) -> Estimate:
        """Return its accuracy, with an interval."""
        return mean_of_counts((0, 1), (self.samples - self.right, self.right))

    def cost(self, exit_costs: Sequence[float]) -> Estimate:
        """Return its mean cost, with an interval, from what leaving at each exit costs."""
        return mean_of_counts(exit_costs, self.leaving)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        answers = None if self.answers is None else self.answers._asdict()
        own = {"name": self.name, "right": self.right, "leaving": list(self.leaving), "answers": answers}
        return {**own, **self.paired._asdict()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return it from :meth:`to_json`."""
        paired = Paired.from_json(content)
        leaving, answers = tuple(map(int, content["leaving"])), Answers.from_json(content.get("answers"))
        return cls(str(content["name"]), paired, int(content["right"]), leaving, answers)


def parts_of(
    labels: Int[Array, "samples"],
    names: Sequence[str],
    right: Bool[Array, "samples"],
    reference: Bool[Array, "samples"],
    exits: Int[Array, "samples"],
    count: int,
    answered: Bool[Array, "samples"] | None = None,
) -> tuple[Part, ...]:
    """Return the parts of the samples, by index; parts without samples are left out.

    Args:
        labels: which part each is of.
        names: of the parts.
        right: whether the policy is.
        reference: whether what it is counted from is.
        exits: taken (0-based).
        count: of exits.
        answered: which samples are; None: all.
    """
    labels, right, reference, exits = map(as_numpy, (labels, right, reference, exits))
    parts = []
    for label, name in enumerate(names):
        mine = labels == label
        if mine.any():
            leaving = np.bincount(exits[mine], minlength=count)
            paired = Paired.of(right[mine], reference[mine])
            answers = Answers.of(None if answered is None else answered[mine], right[mine])
            parts.append(Part(name, paired, int(right[mine].sum()), tuple(leaving.tolist()), answers))
    return tuple(parts)


def losing(parts: Sequence[Part], tolerance: float) -> list[Part]:
    """Return the parts that lose more than a tolerance, and something beyond chance, the largest loss first.

    Of many parts some seem to lose by chance: intervals are of a level that all of them hold together (Bonferroni).
    """
    level = 1 - (1 - LEVEL) / max(len(parts), 1)
    found = [part for part in parts if part.paired.difference < -tolerance and part.paired.interval(level)[1] < 0]
    return sorted(found, key=lambda part: part.paired.difference)


def mean_of_counts(values: Sequence[float], counts: Sequence[int], level: float = LEVEL) -> Estimate:
    """Return the mean of samples with few different values, with an interval for that of samples to come.

    Wald's with two samples more at the least and two at the greatest value, as Agresti and Coull (The American
    Statistician 52, 1998) do for a share: it does not vanish where all samples are alike.

    Args:
        values: that a sample may have, rising.
        counts: how many samples have each.
        level: of the interval.
    """
    each, weights = np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    mean = float(each @ weights / weights.sum())
    weights[[0, -1]] += ENDS
    size = weights.sum()
    middle = each @ weights / size
    half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt((each - middle) ** 2 @ weights) / size
    return Estimate(mean, float(max(middle - half, each[0])), float(min(middle + half, each[-1])))
