"""A queue per stage, and the rule that picks the next batch. Knows no clock, thread or network.

**The rule.** Of the queues that hold samples, the next batch is from the one with the largest n² · age, where n is how
many samples would go at once (up to ``max_batch``) and age is that of the one that came first. So full batches go
first, a lone sample goes when nothing else is there or when it has waited long, and nothing idles while a sample waits.
Before that rule stands another: a sample that has become due (older than ``max_wait``, or than half its own deadline)
goes next, the most overdue first.

Samples of other shapes, such as texts of other lengths, are in queues of their own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar


class Queued(Protocol):
    """What waits."""

    arrived: float
    due: float
    settled: bool


S = TypeVar("S", bound=Queued)


class Batch(NamedTuple, Generic[S]):
    """Samples that go through a stage together."""

    stage: int
    samples: list[S]


class Queues(Generic[S]):
    """What waits before the stages.

    Args:
        stages: how many.
        max_batch: samples at once.
    """

    def __init__(self, stages: int, max_batch: int) -> None:
        self.max_batch = max_batch
        self._queues: list[dict[Hashable, list[S]]] = [{} for _ in range(stages)]

    def put(self, stage: int, sample: S, shapes: Hashable = None) -> None:
        """Let a sample wait before a stage, behind those that are due before it."""
        insort(self._queues[stage].setdefault(shapes, []), sample, key=lambda each: each.due)

    def waiting(self) -> list[int]:
        """Return how many wait before each stage."""
        return [sum(map(len, queues.values())) for queues in self._queues]

    def pick(self, now: float) -> Batch[S] | None:
        """Take the next batch out of its queue, by the rule; None where nothing waits."""
        self._forget()
        found = max(
            (
                (*self._rank(queue, now), stage, shapes)
                for stage, queues in enumerate(self._queues)
                for shapes, queue in queues.items()
            ),
            key=lambda each: each[:3],
            default=None,
        )
        if found is None:
            return None
        *_, stage, shapes = found
        queue = self._queues[stage][shapes]
        samples = [each for each in queue[: self.max_batch] if not each.settled]
        del queue[: self.max_batch]
        if not queue:
            del self._queues[stage][shapes]
        return Batch(stage, samples)

    def _rank(self, queue: list[S], now: float) -> tuple[bool, float]:
        first = queue[0]
        if first.due <= now:
            return True, now - first.due
        return False, min(len(queue), self.max_batch) ** 2 * (now - first.arrived)

    def _forget(self) -> None:
        """Drop samples at the front that were answered meanwhile."""
        for queues in self._queues:
            for shapes in [shapes for shapes, queue in queues.items() if queue[0].settled]:
                queues[shapes] = [each for each in queues[shapes] if not each.settled]
                if not queues[shapes]:
                    del queues[shapes]
