"""The rule that picks the next batch, in times that the test makes up."""

from dataclasses import dataclass

import pytest

from exitwise.serving.queues import Queues


@dataclass(eq=False)
class Waiting:
    name: str
    arrived: float
    due: float = 1e9
    settled: bool = False


def picked(queues, now):
    batch = queues.pick(now)
    return None if batch is None else (batch.stage, "".join(each.name for each in batch.samples))


def filled(*waiting, max_batch=4):
    queues = Queues(3, max_batch)
    for stage, name, arrived, *more in waiting:
        queues.put(stage, Waiting(name, arrived, *more))
    return queues


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([(0, "a", 1), (0, "b", 2), (0, "c", 3), (2, "d", 0)], (0, "abc")),  # 9 · 9 against 1 · 10
        ([(0, "a", 8), (0, "b", 9), (2, "d", 0)], (2, "d")),  # 4 · 2 against 1 · 10
        ([(0, "a", 5), (1, "b", 5), (2, "c", 5)], (2, "c")),  # equal: the deepest
        ([(0, "a", 1), (0, "b", 1), (0, "c", 1), (0, "d", 1), (0, "e", 1)], (0, "abcd")),  # as many as go
        ([(0, "a", 0), (0, "b", 0), (2, "c", 9, 9.5)], (2, "c")),  # due
        ([(1, "a", 9, 9.5), (2, "b", 9, 9.2)], (2, "b")),  # the most overdue
        ([(0, "a", 5, 50), (0, "b", 6, 20), (0, "c", 7, 60)], (0, "bac")),  # in the order of their due times
        ([], None),
    ],
)
def test_the_rule(waiting, expected):
    assert picked(filled(*waiting), 10) == expected


def test_all_that_waits_goes_and_what_was_answered_does_not():
    queues = filled((0, "a", 0), (0, "b", 0), (1, "c", 0))
    queues._queues[1][None][0].settled = True
    queues._queues[0][None][1].settled = True
    assert queues.waiting() == [2, 1, 0]
    assert picked(queues, 1) == (0, "a")
    assert picked(queues, 1) is None
    assert queues.waiting() == [0, 0, 0]


def test_other_shapes_are_other_batches():
    queues = Queues(1, 4)
    for name, shapes in (("a", 1), ("b", 2), ("c", 1)):
        queues.put(0, Waiting(name, 0), shapes)
    assert [picked(queues, 1), picked(queues, 1), picked(queues, 1)] == [(0, "ac"), (0, "b"), None]
