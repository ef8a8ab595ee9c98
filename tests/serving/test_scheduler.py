"""Samples through stages that are timers: who is batched with whom, deadlines, limits, stages that fail or hang."""

import threading
import time

import pytest
from timer_stages import TimerStages, samples

from exitwise.errors import UserError
from exitwise.serving.fates import FullError, LateError, StageError
from exitwise.serving.scheduler import Scheduler

HALF = (0.5, 0.5)


@pytest.fixture
def make():
    made = []

    def scheduler(stages, **limits):
        made.append(Scheduler(stages, **limits))
        return made[-1]

    yield scheduler
    for each in made:
        each.close(1)


def held(stages, stage=0):
    """Let the first batch of a stage wait until the event is set."""
    event, entered = threading.Event(), threading.Event()

    def before(k, exits):
        if k == stage and not event.is_set():
            entered.set()
            event.wait(5)

    stages.before = before
    return event, entered


def test_each_leaves_where_it_is_sure_and_those_that_stay_are_batched_again(make):
    stages = TimerStages()
    scheduler = make(stages, max_batch=4)
    go, entered = held(stages)
    futures = scheduler.submit(samples(2), HALF)
    entered.wait(5)
    futures += scheduler.submit(samples(0, 2, 1, 2), HALF)
    go.set()
    fates = [future.result(5) for future in futures]
    assert [(fate.exit, fate.prediction, fate.confidence, fate.in_time) for fate in fates] == [
        (exit, exit * 11, 1.0, True) for exit in (2, 0, 2, 1, 2)
    ]
    assert stages.batches[0] == (0, [2])
    assert (0, [0, 2, 1, 2]) in stages.batches
    assert any(stage == 1 and exits[-3:] == [2, 1, 2] for stage, exits in stages.batches)
    assert any(stage == 2 and exits[-2:] == [2, 2] for stage, exits in stages.batches)
    assert [count.left for count in scheduler.counts] == [1, 1, 3]
    assert [count.samples for count in scheduler.counts] == [5, 4, 3]
    assert scheduler.inside == 0


def test_thresholds_are_each_samples_own(make):
    scheduler = make(TimerStages())
    (strict,) = scheduler.submit(samples(0), (None, None))
    (loose,) = scheduler.submit(samples(2), (0.0, 0.5))
    assert strict.result(5)[:2] == (2, 2)
    assert loose.result(5)[0] == 0
    assert loose.result(5).thresholds == (0.0, 0.5)


def test_a_deadline_gives_the_best_exit_reached_and_none_before_the_first(make):
    stages = TimerStages()
    scheduler = make(stages)
    go, entered = held(stages, stage=1)
    (future,) = scheduler.submit(samples(2), HALF, 0.15)
    entered.wait(5)
    (behind,) = scheduler.submit(samples(0), HALF, 0.05)
    fate = future.result(5)
    assert (fate.exit, fate.in_time, fate.confidence) == (0, False, 0.0)
    with pytest.raises(LateError, match="before the first exit"):
        behind.result(5)
    assert scheduler.late == 2
    assert scheduler.inside == 0
    go.set()


def test_no_more_than_there_are_places_for(make):
    stages = TimerStages()
    scheduler = make(stages, max_inside=3)
    go, entered = held(stages)
    futures = scheduler.submit(samples(0, 0), HALF)
    entered.wait(5)
    with pytest.raises(FullError, match=r"2 samples of at most 3 are inside; got 2 more"):
        scheduler.submit(samples(0, 0), HALF)
    futures += scheduler.submit(samples(0), HALF)
    futures[-1].cancel()
    futures += scheduler.submit(samples(0), HALF)
    go.set()
    assert [future.result(5).exit for future in (*futures[:2], futures[3])] == [0, 0, 0]
    assert scheduler.refused == 2


def test_a_stage_that_fails_costs_its_batch_and_is_restarted(make):
    stages = TimerStages()
    scheduler = make(stages)

    def before(k, exits):
        if k == 1 and not stages.restarts:
            raise RuntimeError("no\nmemory")

    stages.before = before
    first, second = scheduler.submit(samples(0, 2), HALF)
    assert first.result(5).exit == 0
    with pytest.raises(StageError, match=r"^stage 2 failed: no memory$"):
        second.result(5)
    assert scheduler.submit(samples(2), HALF)[0].result(5).exit == 2
    assert stages.restarts == [1]
    assert [count.failures for count in scheduler.counts] == [0, 1, 0]


def test_a_stage_that_hangs_costs_its_batch_and_others_go_on(make):
    stages = TimerStages()
    scheduler = make(stages, stage_timeout=0.1)
    go, _ = held(stages, stage=1)
    (stuck,) = scheduler.submit(samples(2), HALF)
    with pytest.raises(StageError, match=r"stage 2 did not finish within 0.1 s"):
        stuck.result(5)
    assert scheduler.submit(samples(0), HALF)[0].result(5).exit == 0
    assert stages.restarts == [1]
    go.set()
    time.sleep(0.02)  # what hung comes back, to nobody
    assert scheduler.submit(samples(2), HALF)[0].result(5).exit == 2


def test_closing_answers_what_is_inside(make):
    scheduler = make(TimerStages(seconds=0.01))
    futures = scheduler.submit(samples(2, 0), HALF)
    assert scheduler.close(5)
    assert [future.result(0).exit for future in futures] == [2, 0]
    with pytest.raises(FullError, match="takes no more"):
        scheduler.submit(samples(0), HALF)


def test_limits_are_checked():
    with pytest.raises(UserError, match="expected max_batch above 0; got 0"):
        Scheduler(TimerStages(), max_batch=0)


def test_under_load_from_threads_each_is_answered_once(make):
    stages = TimerStages(seconds=0.0005)
    scheduler = make(stages, max_batch=5, max_inside=10_000, workers=2)
    answers = []

    def ask(seed):
        exits = [(seed * 7 + i) % 3 for i in range(100)]
        for exit in exits:
            answers.append((exit, scheduler.submit(samples(exit), HALF)[0]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(future.result(10).exit == exit for exit, future in answers)
    assert len(answers) == 400
    assert sum(count.left for count in scheduler.counts) == 400
    assert max(len(exits) for _, exits in stages.batches) == 5
