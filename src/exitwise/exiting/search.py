"""Thresholds that do best on calibration samples, one for each exit, found by search rather than from a family.

Works on recorded confidences; knows neither networks nor where the data came from. Costs are MACs, seconds or other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitwise.budgets import check_budget
from exitwise.exiting.policy import ExitPolicy

PRICES, SWEEPS, BEST = 33, 8, 4
"""Prices of compute that are tried, sweeps over the exits per search, and of their results, how many are improved."""


class Cuts(NamedTuple):
    """A policy as how many of the samples, by confidence, may leave at each exit but the last; what it gives.

    Attributes:
        counts: K - 1 numbers, each between 0 and N.
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
        confidences: of N calibration samples at K exits, (N, K).
        correct: whether each exit is right, bool (N, K).
        exit_costs: cost of leaving at each exit, cheap to dear.

    Raises:
        ValueError: without samples.
    """

    def __init__(self, confidences: Tensor, correct: Tensor, exit_costs: Sequence[float]) -> None:
        if len(confidences) == 0:
            raise ValueError("calibration needs at least one sample; got none")
        self.confidences = confidences.cpu()
        self.correct = correct.cpu().long()
        self.costs = torch.tensor(exit_costs, dtype=torch.float64)
        self.size, self.exits = confidences.shape
        self.order = self.confidences.argsort(dim=0, descending=True, stable=True)
        self.rank = self.order.argsort(dim=0)
        sorted_confidences = self.confidences.gather(0, self.order)
        ones = torch.ones(1, self.exits, dtype=torch.bool)
        boundary = torch.cat([ones, sorted_confidences[1:] < sorted_confidences[:-1], ones])
        self.boundary = boundary  # counts at which equal confidences stay together
        self._pool: list[Cuts] | None = None

    def best_accuracy(self, budget: float, start: ExitPolicy) -> ExitPolicy:
        """As many correct as can be at no more than ``budget`` per sample on average, and at least as many as
        ``start``, a policy within the budget, has.

        Raises:
            ValueError: for a budget that the exits' costs do not span.
        """
        check_budget(budget, self.costs.tolist())
        limit = budget * self.size * (1 + 1e-12)
        found = [self._cuts_of(start), *(cuts for cuts in self.pool if cuts.cost <= limit)]
        found.sort(key=lambda cuts: (-cuts.correct, cuts.cost))
        improved = [self._ascend(cuts, limit=limit) for cuts in [self._cuts_of(start), *found[:BEST]]]
        return self._policy(min(improved, key=lambda cuts: (-cuts.correct, cuts.cost)))

    def least_cost(self, accuracy: float, start: ExitPolicy) -> ExitPolicy:
        """As cheap as can be with at least this accuracy, and no dearer than ``start``, a policy that has it."""
        needed = accuracy * self.size - 1e-9
        found = [cuts for cuts in self.pool if cuts.correct >= needed]
        found.sort(key=lambda cuts: (cuts.cost, -cuts.correct))
        improved = [self._ascend(cuts, needed=needed) for cuts in [self._cuts_of(start), *found[:BEST]]]
        return self._policy(min(improved, key=lambda cuts: (cuts.cost, -cuts.correct)))

    @property
    def pool(self) -> list[Cuts]:
        """What is best at each price of compute."""
        if self._pool is None:
            scale = 1 / self.costs[-1].item()
            prices = [scale * price for price in torch.logspace(-3, 1, PRICES).tolist()]
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
        """The best count for exit k, the others' held."""
        earlier = self._leave_before(cuts.counts, k)
        later = self._exit_after(cuts.counts, k)
        inside = ~earlier
        change = inside.long() * (self.correct[:, k] - self.correct.gather(1, later[:, None])[:, 0])
        saved = inside * (self.costs[k] - self.costs[later])
        order = self.order[:, k]
        none_here = self._measure([*cuts.counts[:k], 0, *cuts.counts[k + 1 :]])
        correct = none_here.correct + torch.cat([torch.zeros(1, dtype=torch.int64), change[order].cumsum(0)])
        cost = none_here.cost + torch.cat([torch.zeros(1, dtype=torch.float64), saved[order].cumsum(0)])
        allowed = self.boundary[:, k].clone()
        if price is not None:
            score = correct - price * cost
        elif limit is not None:
            allowed &= cost <= limit
            score = correct - cost / (2 * self.size * self.costs[-1])  # among equals the cheapest
        else:
            assert needed is not None
            allowed &= correct >= needed
            score = -cost + correct * (self.costs[0].item() / (2 * self.size))
        if not allowed.any():
            return cuts
        count = int(score.masked_fill(~allowed, -torch.inf).argmax())
        found = Cuts((*cuts.counts[:k], count, *cuts.counts[k + 1 :]), int(correct[count]), float(cost[count]))
        return found if self._better(found, cuts, price, limit, needed) else cuts

    def _better(self, new: Cuts, old: Cuts, price: float | None, limit: float | None, needed: float | None) -> bool:
        if price is not None:
            return new.correct - price * new.cost > old.correct - price * old.cost + 1e-9
        if limit is not None:
            return (new.correct, -new.cost) > (old.correct, -old.cost)
        return (-new.cost, new.correct) > (-old.cost, old.correct)

    def _leave_before(self, counts: Sequence[int], k: int) -> Tensor:
        limits = torch.tensor(counts[:k], dtype=torch.int64)
        return (self.rank[:, :k] < limits).any(dim=1)

    def _exit_after(self, counts: Sequence[int], k: int) -> Tensor:
        """The exit behind k at which each sample would leave."""
        result = torch.full((self.size,), self.exits - 1)
        for j in range(self.exits - 2, k, -1):
            result.masked_fill_(self.rank[:, j] < counts[j], j)
        return result

    def _measure(self, counts: Sequence[int]) -> Cuts:
        exits = self._exit_after(counts, -1)
        correct = int(self.correct.gather(1, exits[:, None]).sum())
        return Cuts(tuple(counts), correct, float(self.costs[exits].sum()))

    def _cuts_of(self, policy: ExitPolicy) -> Cuts:
        counts = [
            0 if threshold is None else int((self.confidences[:, k] >= threshold).sum())
            for k, threshold in enumerate(policy.thresholds)
        ]
        return self._measure(counts)

    def _policy(self, cuts: Cuts) -> ExitPolicy:
        return ExitPolicy(
            [
                None if count == 0 else self.confidences[self.order[count - 1, k], k].item()
                for k, count in enumerate(cuts.counts)
            ]
        )
