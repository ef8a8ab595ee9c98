"""Thresholds that do best on calibration samples, one for each exit, found by search rather than from a family.

Works on recorded confidences; knows neither networks nor where the data came from. Costs are MACs, seconds or other.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exitwise.budgets import check_budget
from exitwise.errors import UserError
from exitwise.exiting import rule
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.policy import ExitPolicy
from exitwise.shapes import Bool, Float, Int

PRICES, SWEEPS, BEST = 33, 8, 4
"""Prices of compute that are tried, sweeps over the exits per search, and of their results, how many are improved."""


class Cuts(NamedTuple):
    """A policy as how many of the samples, by confidence, may leave at each exit but the last; what it gives.

    Attributes:
        counts: for each exit but the last, between 0 and the number of samples.
        correct: samples classified correctly.
        cost: total over the samples.
    """

    counts: tuple[int, ...]
    correct: int
    cost: float


class ThresholdSearch:
    """Search for thresholds by coordinate ascent: with all others held, the best threshold of one exit is exact.

    Correct answers are traded against cost at many prices first; the best of what that gives is improved within the
    limit asked for.

    Args:
        confidences: of calibration samples.
        correct: whether each exit is right.
        exit_costs: cost of leaving at each exit, cheap to dear.

    Raises:
        UserError: without samples.
    """

    def __init__(
        self,
        confidences: Float[Array, "samples exits"],
        correct: Bool[Array, "samples exits"],
        exit_costs: Sequence[float],
    ) -> None:
        if len(confidences) == 0:
            raise UserError("calibration needs at least one sample; got none")
        self.confidences = as_numpy(confidences)
        self.correct = as_numpy(correct).astype(np.int64)
        self.costs = np.array(exit_costs, dtype=np.float64)
        self.size, self.exits = self.confidences.shape
        self.order = np.argsort(-self.confidences, axis=0, kind="stable")
        self.rank = np.argsort(self.order, axis=0, kind="stable").astype(np.float64)
        sorted_confidences = np.take_along_axis(self.confidences, self.order, 0)
        ones = np.ones((1, self.exits), dtype=np.bool_)
        boundary = np.concatenate([ones, sorted_confidences[1:] < sorted_confidences[:-1], ones])
        self.boundary = boundary  # counts at which equal confidences stay together
        self._pool: list[Cuts] | None = None

    def best_accuracy(self, budget: float, start: ExitPolicy) -> ExitPolicy:
        """Return thresholds with as many correct as can be at no more than ``budget`` per sample on average, and at
        least as many as ``start``, a policy within the budget, has.

        Raises:
            UserError: for a budget that the exits' costs do not span.
        """
        check_budget(budget, self.costs.tolist())
        limit = budget * self.size * (1 + 1e-12)
        found = [self._cuts_of(start), *(cuts for cuts in self.pool if cuts.cost <= limit)]
        found.sort(key=lambda cuts: (-cuts.correct, cuts.cost))
        improved = [self._ascend(cuts, limit=limit) for cuts in [self._cuts_of(start), *found[:BEST]]]
        return self._policy(min(improved, key=lambda cuts: (-cuts.correct, cuts.cost)))

    def least_cost(self, accuracy: float, start: ExitPolicy) -> ExitPolicy:
        """Return the cheapest thresholds with at least this accuracy, at most as dear as ``start``, which has it."""
        needed = accuracy * self.size - 1e-9
        found = [cuts for cuts in self.pool if cuts.correct >= needed]
        found.sort(key=lambda cuts: (cuts.cost, -cuts.correct))
        improved = [self._ascend(cuts, needed=needed) for cuts in [self._cuts_of(start), *found[:BEST]]]
        return self._policy(min(improved, key=lambda cuts: (cuts.cost, -cuts.correct)))

    @property
    def pool(self) -> list[Cuts]:
        """Return what is best at each price of compute."""
        if self._pool is None:
            scale = 1 / float(self.costs[-1])
            prices = [scale * price for price in np.logspace(-3, 1, PRICES, dtype=np.float32).tolist()]
            cuts = self._measure([0] * (self.exits - 1))
            self._pool = []
            for price in [*prices, *reversed(prices)]:  # each starts from its neighbour's, from both sides
                cuts = self._ascend(cuts, price=price)
                self._pool.append(cuts)
        return self._pool

    def _ascend(
        self, cuts: Cuts, *, price: float | None = None, limit: float | None = None, needed: float | None = None
    ) -> Cuts:
        for _ in range(SWEEPS):
            before = cuts
            for k in range(self.exits - 2, -1, -1):
                cuts = self._best_at(cuts, k, price, limit, needed)
            if cuts.counts == before.counts:
                break
        return cuts

    def _best_at(self, cuts: Cuts, k: int, price: float | None, limit: float | None, needed: float | None) -> Cuts:
        """Return the best count for exit k, the others' held."""
        earlier = self._leave_before(cuts.counts, k)
        later = self._exit_after(cuts.counts, k)
        inside = ~earlier
        change = inside * (self.correct[:, k] - _at(self.correct, later))
        saved = inside * (self.costs[k] - self.costs[later])
        order = self.order[:, k]
        none_here = self._measure([*cuts.counts[:k], 0, *cuts.counts[k + 1 :]])
        correct = none_here.correct + np.concatenate([[0], change[order].cumsum()])
        cost = none_here.cost + np.concatenate([[0.0], saved[order].cumsum()])
        allowed = self.boundary[:, k].copy()
        if price is not None:
            score = correct - price * cost
        elif limit is not None:
            allowed &= cost <= limit
            score = correct - cost / (2 * self.size * self.costs[-1])  # among equals the cheapest
        else:
            assert needed is not None
            allowed &= correct >= needed
            score = -cost + correct * (self.costs[0] / (2 * self.size))
        if not allowed.any():
            return cuts
        count = int(np.where(allowed, score, -np.inf).argmax())
        found = Cuts((*cuts.counts[:k], count, *cuts.counts[k + 1 :]), int(correct[count]), float(cost[count]))
        return found if self._better(found, cuts, price, limit, needed) else cuts

    def _better(self, new: Cuts, old: Cuts, price: float | None, limit: float | None, needed: float | None) -> bool:
        if price is not None:
            return new.correct - price * new.cost > old.correct - price * old.cost + 1e-9
        if limit is not None:
            return (new.correct, -new.cost) > (old.correct, -old.cost)
        return (-new.cost, new.correct) > (-old.cost, old.correct)

    def _leave_before(self, counts: Sequence[int], k: int) -> Bool[np.ndarray, "samples"]:
        """Return which samples leave at an exit before k."""
        left: Bool[np.ndarray, "samples"] = self._taken([*counts[:k], *[0] * (self.exits - 1 - k)]) < k
        return left

    def _exit_after(self, counts: Sequence[int], k: int) -> Int[np.ndarray, "samples"]:
        """Return the exit behind k at which each sample would leave."""
        return self._taken([*[0] * (k + 1), *counts[k + 1 :]])

    def _taken(self, counts: Sequence[int]) -> Int[np.ndarray, "samples"]:
        """Return the exit of each sample by the exit rule, where so many of the most confident may leave at each."""
        thresholds = tuple(1.0 - count if count else None for count in counts)
        taken: Int[np.ndarray, "samples"] = rule.exits_taken(-self.rank, thresholds)
        return taken

    def _measure(self, counts: Sequence[int]) -> Cuts:
        exits = self._exit_after(counts, -1)
        return Cuts(tuple(counts), int(_at(self.correct, exits).sum()), float(self.costs[exits].sum()))

    def _cuts_of(self, policy: ExitPolicy) -> Cuts:
        counts = [int(rule.leaves(self.confidences[:, k], k, policy.thresholds).sum()) for k in range(self.exits - 1)]
        return self._measure(counts)

    def _policy(self, cuts: Cuts) -> ExitPolicy:
        return ExitPolicy(
            [
                None if count == 0 else self.confidences[self.order[count - 1, k], k].item()
                for k, count in enumerate(cuts.counts)
            ]
        )


def _at(values: Int[np.ndarray, "samples exits"], exits: Int[np.ndarray, "samples"]) -> Int[np.ndarray, "samples"]:
    """Return the value of each sample at its exit, from those at all exits."""
    return np.take_along_axis(values, exits[:, None], 1)[:, 0]
