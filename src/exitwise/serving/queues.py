"""A queue per stage, and the rule that picks the next batch. Knows no clock, thread or network.

**The rule.** Of the queues that hold samples, the next batch is from the one with the largest

    n / t · (1 + (age / wait)³)

where n is how many samples would go at once (up to ``max_batch``), t the time that such a batch of the stage has taken,
age that of the sample that is due first, and wait how long it may wait. So batches that use the processor well go
first; from its wait on, a sample soon goes before fuller queues, and none waits for ever. Nothing idles while a sample
waits.

Samples of other shapes, such as texts of other lengths, are in queues of their own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

LEARNED = 0.1
"""Weight of the latest batch in how long those of its size take."""

SHORTEST = 1e-6
"""Seconds that a batch is taken to take at least."""

Place = tuple[int, Hashable]
"""A stage, and the shapes of the samples in one of its queues."""


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
        self._seconds: list[dict[int, float]] = [{} for _ in range(stages)]

    def put(self, stage: int, sample: S, shapes: Hashable = None) -> None:
        """Let a sample wait before a stage, behind those that are due before it."""
        insort(self._queues[stage].setdefault(shapes, []), sample, key=lambda each: each.due)

    def waiting(self) -> list[int]:
        """Return how many wait before each stage."""
        return [sum(map(len, queues.values())) for queues in self._queues]

    def pick(self, now: float) -> Batch[S] | None:
        """Take the next batch out of its queue, by the rule; None where nothing waits."""
        self._forget()
        places = [(stage, shapes) for stage, queues in enumerate(self._queues) for shapes in queues]
        if not places:
            return None
        stage, shapes = max(places, key=lambda each: (self._worth(each, now), each[0]))
        queue = self._queues[stage][shapes]
        samples = [each for each in queue[: self.max_batch] if not each.settled]
        del queue[: self.max_batch]
        if not queue:
            del self._queues[stage][shapes]
        return Batch(stage, samples)

    def _going(self, place: Place) -> int:
        """Return how many would go."""
        return min(len(self._queues[place[0]][place[1]]), self.max_batch)

    def _worth(self, place: Place, now: float) -> float:
        """Return samples per second of the next batch, times its urgency."""
        first = self._queues[place[0]][place[1]][0]
        urgency = 1 + ((now - first.arrived) / max(first.due - first.arrived, SHORTEST)) ** 3
        return self._going(place) / self._seconds_of(place) * urgency

    def took(self, stage: int, samples: int, seconds: float) -> None:
        """Learn how long a batch took."""
        size, known = _size(samples), self._seconds[stage]
        seconds = max(seconds, SHORTEST)
        known[size] = seconds if size not in known else known[size] + LEARNED * (seconds - known[size])

    def _seconds_of(self, place: Place) -> float:
        """Return how long a batch takes; of a larger size than there has been as long per sample, of a stage that has
        not run as long as the shortest of others."""
        size, known = _size(self._going(place)), self._seconds[place[0]]
        if size in known:
            return known[size]
        if not known:
            return min((each for others in self._seconds for each in others.values()), default=SHORTEST)
        near = min(known, key=lambda each: abs(each - size))
        return known[near] * 2.0 ** max(size - near, 0)

    def _forget(self) -> None:
        """Drop samples at the front that were answered meanwhile."""
        for queues in self._queues:
            for shapes in [shapes for shapes, queue in queues.items() if queue[0].settled]:
                queues[shapes] = [each for each in queues[shapes] if not each.settled]
                if not queues[shapes]:
                    del queues[shapes]


def _size(samples: int) -> int:
    """Return which of the sizes 1, 2, 3 to 4, 5 to 8, ... a batch is of."""
    return (samples - 1).bit_length()
