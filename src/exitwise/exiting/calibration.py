"""Thresholds for a compute budget, found on recorded confidences of held-out data. Imports no torch.

Knows neither networks nor where the data came from; never to be called with test data.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from exitwise.budgets import (
    bisect_log_p,
    check_budget,
    check_drop,
    check_proportions,
    exit_count,
    geometric_proportions,
)
from exitwise.errors import UserError
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.paired import Paired
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Family, leaves
from exitwise.shapes import Bool, Float, Int


def calibrate_proportions(confidences: Float[Array, "samples exits"], proportions: Sequence[float]) -> ExitPolicy:
    """Return thresholds under which the calibration samples leave in the given proportions.

    At exit k, with m = floor(N * q_k), the threshold is the confidence of the m-th most confident sample
    still inside; equal confidences leave together. Where m is 0, or fewer than m are inside, nobody can
    leave. (docs/method.md, "Calibration".)

    Args:
        confidences: of calibration samples.
        proportions: a share for each exit; they sum to 1.

    Raises:
        ValueError: for wrong proportions, or without samples.
    """
    confidences = as_numpy(confidences)
    n, exits = confidences.shape
    if n == 0:
        raise ValueError("calibration needs at least one sample; got none")
    thresholds: list[float | None] = []
    inside = np.arange(n)
    for k, proportion in enumerate(check_proportions(proportions, exits)[:-1]):
        count = exit_count(n, proportion)
        if count == 0 or len(inside) < count:
            thresholds.append(None)
            continue
        candidates = confidences[inside, k]
        place = len(inside) - count
        sure = np.where(np.isnan(candidates), -np.inf, candidates)  # what is not a number never leaves
        threshold = np.partition(sure, place)[place].item()
        thresholds.append(threshold if threshold > -np.inf else None)
        inside = inside[~leaves(candidates, k, (*thresholds, None))]
    return ExitPolicy(thresholds)


def member(
    confidences: Float[np.ndarray, "samples exits"], position: float, family: Family
) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds of a family, and the proportions that they were made for or that leave by them.

    Args:
        confidences: of calibration samples.
        position: log p of the geometric family; the threshold that all exits have.
        family: which.
    """
    exits = confidences.shape[1]
    if family == "geometric":
        proportions = geometric_proportions(position, exits)
        return calibrate_proportions(confidences, proportions), proportions
    policy = ExitPolicy([position if position < np.inf else None] * (exits - 1))
    return policy, (np.bincount(policy.exit_of(confidences), minlength=exits) / len(confidences)).tolist()


def members(
    confidences: Float[np.ndarray, "samples exits"], count: int, reach: float, family: Family
) -> list[tuple[ExitPolicy, list[float]]]:
    """Return so many members of a family, the cheapest first; ``reach`` is the largest log p."""
    if family == "geometric":
        positions = np.linspace(-reach, reach, count, dtype=np.float32)
    else:
        positions = np.quantile(_levels(confidences), np.linspace(0, 1, count), method="inverted_cdf")
    return [member(confidences, position, family) for position in positions.tolist()]


def _levels(confidences: Float[np.ndarray, "samples exits"]) -> Float[np.ndarray, "levels"]:
    """Return thresholds that make a difference at any exit but the last, rising; at the last of them nobody leaves."""
    early = confidences[:, :-1]
    return np.append(np.unique(early[np.isfinite(early)]), np.inf)


def calibrate_macs(
    confidences: Float[Array, "samples exits"], exit_macs: Sequence[float], macs: float, family: Family = "geometric"
) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds of a family that spend as much of a budget as they can without exceeding it.

    Args:
        confidences: of calibration samples.
        exit_macs: cost of leaving at each exit, cheap to dear.
        macs: mean multiply-accumulates per sample, not to be exceeded on the calibration samples.
        family: ``geometric``, or ``same``: one threshold for all exits.

    Returns:
        The policy, and the proportions it was calibrated for.

    Raises:
        ValueError: if the budget lies below the first exit's cost or above the full network's.
    """
    check_budget(macs, exit_macs)
    confidences = as_numpy(confidences)
    if len(confidences) == 0:
        raise ValueError("calibration needs at least one sample; got none")
    costs = np.array(exit_macs, dtype=np.float64)

    def affordable(position: float) -> bool:
        policy, _ = member(confidences, position, family)
        return bool(costs[policy.exit_of(confidences)].mean() <= macs * (1 + 1e-12))

    if family == "geometric":
        return member(confidences, bisect_log_p(affordable), family)
    levels = _levels(confidences).tolist()
    dearer = bisect.bisect_left(levels, True, key=lambda level: not affordable(level))
    return member(confidences, levels[max(dearer - 1, 0)], family)


def all_at(exit: int, exits: int) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds by which all samples leave at one exit (0-based), and the proportions that leave by them."""
    thresholds = [0.0 if k == exit else None for k in range(exits - 1)]
    return ExitPolicy(thresholds), [float(k == exit) for k in range(exits)]


MARGIN = 1.0
"""Standard errors that a drop in accuracy is kept below what was asked for."""

ACCURACY_STEPS = 400
"""Members of a family that are tried for an accuracy."""


def calibrate_accuracy(
    confidences: Float[Array, "samples exits"],
    correct: Bool[Array, "samples exits"],
    exit_macs: Sequence[float],
    max_drop: float,
    family: Family = "geometric",
    full: Bool[Array, "samples"] | None = None,
    margin: float = 0.0,
) -> tuple[ExitPolicy, list[float]]:
    """Return thresholds that cost least among those that lose no more accuracy than allowed: of a family, or by which
    all samples leave at one exit.

    Args:
        confidences: of calibration samples.
        correct: whether each exit is right.
        exit_macs: cost of leaving at each exit, cheap to dear.
        max_drop: by how much accuracy on the calibration samples may fall below the full network's, in [0, 1].
        family: ``geometric``, or ``same``: one threshold for all exits.
        full: whether the full network is right, where ``correct`` is not of its own answers; None: the last exit.
        margin: how many standard errors of a drop are added to it. Without any the cheapest of many thresholds is
            mostly one that was lucky on the calibration samples.

    Returns:
        The policy, and the proportions it was calibrated for. What it loses on other samples may be more.

    Raises:
        ValueError: for a drop outside [0, 1].
        UserError: if no thresholds lose so little.
    """
    check_drop(max_drop)
    confidences, correct = as_numpy(confidences), as_numpy(correct)
    exits = len(exit_macs)
    costs = np.array(exit_macs, dtype=np.float64)
    right = correct[:, -1] if full is None else as_numpy(full)
    together = [all_at(exit, exits) for exit in range(exits)]
    best, least, lost = None, np.inf, np.inf
    for policy, proportions in [*together, *members(confidences, ACCURACY_STEPS, 8, family)]:
        taken = policy.exit_of(confidences)
        drop, error = loss_of(taken, correct, right)
        cost, lost = costs[taken].mean(), min(lost, drop)
        if policy is together[-1][0]:
            error = 0.0  # there is nothing dearer to turn to
        if drop + margin * error <= max_drop + 1e-12 and cost < least:
            best, least = (policy, proportions), cost
    if best is None:
        raise UserError(
            f"expected thresholds that lose at most {100 * max_drop:.3g} points of the full network's accuracy; by "
            f"this measure {100 * lost:.3g} is the least: take another"
        )
    return best


def loss_of(
    taken: Int[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples exits"], full: Bool[np.ndarray, "samples"]
) -> tuple[float, float]:
    """Return how much less accurate the exits taken are than the full network, and the standard error of that."""
    paired = Paired.of(full, np.take_along_axis(correct, taken[:, None], 1)[:, 0])
    return paired.difference, paired.error
