"""Thresholds for a range of budgets, found at once, so that who runs a network may choose. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exitwise.errors import UserError
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.rule import Family, Thresholds
from exitwise.exiting.search import ThresholdSearch
from exitwise.shapes import Bool, Float

STEPS = 20
"""Budgets between none and the full network's, evenly apart."""


class Budgeted(NamedTuple):
    """A line of the table.

    Attributes:
        budget: share of the full network's MACs, not exceeded on the calibration samples.
        thresholds: for it.
        accuracy, macs: on the calibration samples; MACs per sample.
    """

    budget: float
    thresholds: Thresholds
    accuracy: float
    macs: float


def budget_table(
    confidences: Float[Array, "samples exits"],
    correct: Bool[Array, "samples exits"],
    exit_macs: Sequence[float],
    searched: bool = False,
    family: Family = "geometric",
    full_macs: float | None = None,
) -> tuple[Budgeted, ...]:
    """Return a line for the first exit's share of the full network's MACs, for each twentieth from there, and for the
    last exit's share.

    Args:
        confidences: of calibration samples.
        correct: whether each exit is right.
        exit_macs: cost of leaving at each exit, cheap to dear.
        searched: whether thresholds are searched; else they are of the family.
        family: of thresholds.
        full_macs: what shares are of; the last exit's cost if None.
    """
    confidences, correct = as_numpy(confidences), as_numpy(correct)
    costs = np.array(exit_macs, dtype=np.float64)
    full = costs[-1] if full_macs is None else full_macs
    least, most = costs[0] / full, costs[-1] / full
    search = ThresholdSearch(confidences, correct, exit_macs) if searched else None
    lines = []
    steps = (k / STEPS for k in range(1, int(most * STEPS) + 1))
    for budget in sorted({float(least), float(most), *(step for step in steps if least < step < most)}):
        macs = min(max(budget * full, costs[0]), costs[-1])
        policy, _ = calibrate_macs(confidences, exit_macs, macs, family)
        if search is not None:
            policy = search.best_accuracy(macs, policy)
        taken = policy.exit_of(confidences)
        accuracy = float(np.take_along_axis(correct, taken[:, None], 1).mean())
        lines.append(Budgeted(budget, policy.thresholds, accuracy, float(costs[taken].mean())))
    return tuple(lines)


def line_for(table: Sequence[Budgeted], budget: float) -> Budgeted:
    """Return the line with the largest budget up to a share of the full network's MACs.

    Raises:
        UserError: if there is none: for an empty table, or a budget below its first.
    """
    if not table:
        raise UserError("expected a calibration with a table of budgets; this one has none: calibrate again")
    within = [line for line in table if line.budget <= budget * (1 + 1e-9)]
    most = table[-1].budget
    if not within or not budget <= most * (1 + 1e-9):
        raise UserError(
            f"expected a budget from {table[0].budget:.3g}, the first exit's, to {most:.3g}; got {budget:g}"
        )
    return within[-1]
