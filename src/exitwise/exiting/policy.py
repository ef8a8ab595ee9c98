"""Thresholds, and the measure whose confidences they are compared with. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exitwise.budgets import check_confidence
from exitwise.exiting import rule
from exitwise.exiting.arrays import Array
from exitwise.exiting.measures import Measure, create_measure
from exitwise.shapes import Bool, Float, Int

MAX_PROBABILITY = create_measure()


@dataclass(frozen=True)
class ExitPolicy:
    """A sample leaves at the first exit whose threshold its confidence reaches; the last exit takes the rest.

    Attributes:
        thresholds: one per exit but the last, each a confidence in [0, 1], or None: nobody can leave there.
        measure: how confidence is read from logits.
        abstain_below: confidence where a sample leaves, below which it is not answered ("I don't know"); None: all are.

    Raises:
        ValueError: for a threshold that is not a finite number, or a measure for another number of exits.
        UserError: for a confidence to abstain below that is not between 0 and 1.
    """

    thresholds: rule.Thresholds
    measure: Measure
    abstain_below: float | None

    def __init__(
        self,
        thresholds: Sequence[float | None],
        measure: Measure = MAX_PROBABILITY,
        abstain_below: float | None = None,
    ) -> None:
        check_confidence(abstain_below)
        values = rule.finite_thresholds(thresholds)
        measure.check(len(values) + 1)
        object.__setattr__(self, "thresholds", values)
        object.__setattr__(self, "measure", measure)
        object.__setattr__(self, "abstain_below", abstain_below)

    @property
    def exits(self) -> int:
        """Number of exits."""
        return len(self.thresholds) + 1

    def read_by(self, measure: Measure) -> ExitPolicy:
        """Return the same thresholds on another reading of the logits."""
        return ExitPolicy(self.thresholds, measure, self.abstain_below)

    def abstaining(self, below: float | None) -> ExitPolicy:
        """Return the same thresholds, by which samples less sure than that are not answered."""
        return ExitPolicy(self.thresholds, self.measure, below)

    def answered(self, confidences: Float[Array, "samples"]) -> Bool[Array, "samples"]:
        """Return :func:`~exitwise.exiting.rule.answered`."""
        return rule.answered(confidences, self.abstain_below)

    def can_leave(self, exit: int) -> bool:
        """Return :func:`~exitwise.exiting.rule.can_leave`."""
        return rule.can_leave(exit, self.thresholds)

    def leaves(self, confidences: Float[Array, "samples"], exit: int) -> Bool[Array, "samples"]:
        """Return :func:`~exitwise.exiting.rule.leaves`."""
        return rule.leaves(confidences, exit, self.thresholds)

    def leaves_alone(self, confidence: Float[Array, "1"], exit: int) -> bool:
        """Return :func:`~exitwise.exiting.rule.leaves_alone`."""
        return rule.leaves_alone(confidence, exit, self.thresholds)

    def exit_of(self, confidences: Float[Array, "samples exits"]) -> Int[Array, "samples"]:
        """Return :func:`~exitwise.exiting.rule.exits_taken`."""
        return rule.exits_taken(confidences, self.thresholds)
