"""The rule that picks the next batch, in times that the test makes up."""

from dataclasses import dataclass

import pytest

from exitwise.serving.queues import Queues


@dataclass(eq=False)
class Waiting:
    name: str
    arrived: float
    due: float = 0.0
    settled: bool = False

    def __post_init__(self):
        self.due = self.due or self.arrived + 10


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
        ([(0, "a", 9), (0, "b", 9), (2, "c", 8)], (0, "ab")),  # 2 · (1 + 0.1³) against 1 · (1 + 0.2³)
        ([(0, "a", 9), (0, "b", 9), (2, "c", 0, 5)], (2, "c")),  # 2 against 1 · (1 + 2³)
        ([(0, "a", 9), (0, "b", 9), (2, "c", 0, 20)], (0, "ab")),  # 2 against 1 · (1 + 0.5³)
        ([(0, "a", 5), (1, "b", 5), (2, "c", 5)], (2, "c")),  # equal: the deepest
        ([(0, "a", 1), (0, "b", 1), (0, "c", 1), (0, "d", 1), (0, "e", 1)], (0, "abcd")),  # as many as go
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


def test_a_stage_that_takes_longer_counts_less_and_sizes_that_were_not_are_guessed():
    waiting = [(0, "a", 9), (0, "b", 9), (0, "c", 9), (1, "d", 9)]
    assert picked(filled(*waiting), 10) == (0, "abc")
    queues = filled(*waiting)
    queues.took(0, 4, 8.0)
    queues.took(1, 1, 1.0)
    assert picked(queues, 10) == (1, "d")  # 1 / 1 against 3 / 8
    queues = filled(*waiting)
    queues.took(0, 1, 4.0)  # so three take some 16
    assert picked(queues, 10) == (1, "d")
    queues = filled(*waiting)
    queues.took(0, 1, 4.0)
    queues.took(0, 4, 4.0)
    assert picked(queues, 10) == (0, "abc")  # the stage that has not run is taken to be as fast
