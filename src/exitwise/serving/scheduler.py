"""Runs samples through stages, batched anew before each, and answers each as soon as it leaves. Knows no HTTP.

Stages are anything with a step; the exit rule decides who goes on. Threads run the batches that
:mod:`exitwise.serving.queues` picks, and one watches deadlines and stages that hang.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from exitwise.deploy.chain import Answer, Inside
from exitwise.errors import UserError, in_a_line
from exitwise.exiting.rule import Thresholds
from exitwise.serving.fates import FullError, LateError, Left, StageCounts, StageError, goes, said
from exitwise.serving.queues import Batch, Queues

LOG = logging.getLogger("exitwise.serving")


class Stages(Protocol):
    """What is run, such as a :class:`~exitwise.deploy.chain.Chain`."""

    def __len__(self) -> int: ...

    def step(self, k: int, inside: Inside, /) -> tuple[Answer, Inside]: ...

    def restart(self, k: int, /) -> None: ...


@dataclass(eq=False, slots=True)
class _Sample:
    inside: Inside
    thresholds: Thresholds
    arrived: float
    due: float
    deadline: float | None
    future: Future[Left] = field(default_factory=Future)
    reached: Left | None = None
    settled: bool = False


@dataclass(eq=False)
class _Running:
    batch: Batch[_Sample]
    until: float
    abandoned: bool = False


class Scheduler:
    """Samples in, the fate of each out, as a future.

    Args:
        stages: what is run.
        max_batch: samples at once in a stage.
        max_wait: seconds from which a sample soon goes before fuller queues.
        max_inside: samples that may be inside at a time; others are refused.
        stage_timeout: seconds after which a stage is taken to hang.
        workers: batches that run at a time.

    Attributes:
        counts: what each stage has done.
        refused: samples that found it full.
        late: samples whose deadline passed.
        lost: samples in the batches of stages that failed or hung.

    Raises:
        UserError: for limits that are not positive.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        max_batch: int = 16,
        max_wait: float = 0.05,
        max_inside: int = 256,
        stage_timeout: float = 30.0,
        workers: int = 1,
    ) -> None:
        limits = {
            "max_batch": max_batch,
            "max_wait": max_wait,
            "max_queue": max_inside,
            "stage_timeout": stage_timeout,
            "workers": workers,
        }
        for name, value in limits.items():
            if not value > 0:
                raise UserError(f"expected {name} above 0; got {value}")
        self.stages, self.max_wait, self.max_inside, self.stage_timeout = stages, max_wait, max_inside, stage_timeout
        self.counts = [StageCounts() for _ in range(len(stages))]
        self.refused = self.late = self.lost = self.inside = 0
        self._queues: Queues[_Sample] = Queues(len(stages), max_batch)
        self._lock = threading.Lock()
        self._work, self._clock = threading.Condition(self._lock), threading.Condition(self._lock)
        self._empty = threading.Condition(self._lock)
        self._running: list[_Running] = []
        self._deadlines: list[tuple[float, int, _Sample]] = []
        self._number = itertools.count()
        self._closed = False
        self._answers: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        for _ in range(workers):
            self._start(self._run)
        self._start(self._watch)
        self._start(self._hand_out)

    @staticmethod
    def _start(target: Any, *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True, name="exitwise-serving").start()

    @property
    def max_batch(self) -> int:
        """Samples at once in a stage."""
        return self._queues.max_batch

    @property
    def load(self) -> float:
        """Return which share of the samples that may be inside are."""
        return self.inside / self.max_inside

    def waiting(self) -> list[int]:
        """Return how many samples wait before each stage."""
        with self._lock:
            return self._queues.waiting()

    def submit(
        self, inside: Inside, thresholds: Thresholds, seconds: float | None = None, stage: int = 0
    ) -> list[Future[Left]]:
        """Take samples in, all or none.

        Args:
            inside: before a stage.
            thresholds: they leave by.
            seconds: until each is answered with the best exit reached.
            stage: that they are before, 0-based.

        Raises:
            FullError: if they are too many with those inside, or it is closed.
            LateError: if no time is left.
        """
        now, size = time.monotonic(), inside.samples
        if seconds is not None and seconds <= 0:
            with self._lock:
                self.late += size
            raise LateError("its deadline passed before the first exit")
        deadline = None if seconds is None else now + seconds
        due = now + (self.max_wait if seconds is None else min(self.max_wait, seconds / 2))
        samples = [_Sample(inside.rows(slice(i, i + 1)), thresholds, now, due, deadline) for i in range(size)]
        shapes = inside.shapes
        with self._lock:
            if self._closed or self.inside + size > self.max_inside:
                self.refused += size
                raise FullError(
                    f"{self.inside} samples of at most {self.max_inside} are inside; got {size} more"
                    if not self._closed
                    else "it takes no more samples"
                )
            self.inside += size
            for sample in samples:
                self._queues.put(stage, sample, shapes)
                if deadline is not None:
                    heapq.heappush(self._deadlines, (deadline, next(self._number), sample))
            self._work.notify()
            if samples and self._deadlines and self._deadlines[0][2] is samples[0]:
                self._clock.notify()
        for sample in samples:
            sample.future.add_done_callback(partial(self._given_up, sample))
        return [sample.future for sample in samples]

    def _given_up(self, sample: _Sample, future: Future[Left]) -> None:
        if future.cancelled():
            with self._lock:
                self._claim(sample)

    def _claim(self, sample: _Sample) -> bool:
        """Return whether the caller, who holds the lock, is the one to answer a sample."""
        if sample.settled:
            return False
        sample.settled = True
        self.inside -= 1
        if not self.inside:
            self._empty.notify_all()
        return True

    def _run(self, restart: int | None = None) -> None:
        """Run batches, one after the other; answers are handed out by another thread, while the next batch runs."""
        if restart is not None:
            self._restart(restart)
        while True:
            running = self._next()
            if running is None:
                return
            batch, error = running.batch, None
            start = time.monotonic()
            try:
                inside = Inside.together([sample.inside for sample in batch.samples])
                answer, behind = self.stages.step(batch.stage, inside)
                seconds = time.monotonic() - start
                fates = self._fates(batch, answer)
                going_on = _apart(behind, np.array([fate is None for fate in fates]))
            except Exception as failure:  # whatever a stage raises costs its batch alone
                error = failure
            with self._lock:
                if running.abandoned:
                    return  # taken to hang; another does its work
                self._running.remove(running)
                gone = [] if error is not None else self._settle(batch, fates, going_on, seconds)
            if error is not None:
                self._fail(batch, f"stage {batch.stage + 1} failed: {in_a_line(error)}")
                self._restart(batch.stage)
            if gone:
                self._answers.put(partial(_answer, gone))

    def _hand_out(self) -> None:
        while not (self._closed and not self.inside and self._answers.empty()):
            self._answers.get()()

    def _next(self) -> _Running | None:
        """Return a batch to run, once there is one; None at the end."""
        with self._lock:
            while True:
                batch = self._queues.pick(time.monotonic())
                if batch is not None and batch.samples:
                    running = _Running(batch, time.monotonic() + self.stage_timeout)
                    self._running.append(running)
                    return running
                if batch is None:
                    if self._closed:
                        return None
                    self._work.wait()

    def _fates(self, batch: Batch[_Sample], answer: Answer) -> list[Left | None]:
        """Return the fate of each sample that leaves; where others have a deadline, keep what the exit says."""
        found: list[Left | None] = []
        leaving = goes(answer, batch.stage, [sample.thresholds for sample in batch.samples])
        for i, (sample, goes_now) in enumerate(zip(batch.samples, leaving, strict=True)):
            left = None
            if goes_now or sample.deadline is not None:
                left = said(answer, i, batch.stage, sample.thresholds, goes_now)
                if not goes_now:
                    sample.reached = left
            found.append(left if goes_now else None)
        return found

    def _settle(
        self, batch: Batch[_Sample], fates: Sequence[Left | None], going_on: Sequence[Inside], seconds: float
    ) -> list[tuple[_Sample, Left]]:
        """Let those that stay wait before the next stage; return the others, to be answered. The lock is held."""
        self._queues.took(batch.stage, len(fates), seconds)
        counts = self.counts[batch.stage]
        counts.batches += 1
        counts.samples += len(fates)
        counts.seconds += seconds
        gone: list[tuple[_Sample, Left]] = []
        parts = iter(going_on)
        for sample, fate in zip(batch.samples, fates, strict=True):
            if fate is not None:
                counts.left += 1
                if self._claim(sample):
                    gone.append((sample, fate))
                continue
            sample.inside = next(parts)
            if not sample.settled:
                self._queues.put(batch.stage + 1, sample, sample.inside.shapes)
        if going_on:
            self._work.notify()
        return gone

    def _fail(self, batch: Batch[_Sample], why: str) -> None:
        LOG.warning("%s, with %d samples; it is restarted", why, len(batch.samples))
        with self._lock:
            self.counts[batch.stage].failures += 1
            gone = [sample for sample in batch.samples if self._claim(sample)]
            self.lost += len(gone)
        for sample in gone:
            if sample.future.set_running_or_notify_cancel():
                sample.future.set_exception(StageError(why))

    def _restart(self, stage: int) -> None:
        try:
            self.stages.restart(stage)
        except Exception as error:  # it is tried again when it fails again
            LOG.warning("stage %d could not be restarted: %s", stage + 1, in_a_line(error))

    def _watch(self) -> None:
        """Answer samples whose deadline has passed; give up batches that take too long."""
        while True:
            late: list[_Sample] = []
            hung: list[_Running] = []
            with self._lock:
                now = time.monotonic()
                while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].settled):
                    sample = heapq.heappop(self._deadlines)[2]
                    if self._claim(sample):
                        self.late += 1
                        late.append(sample)
                for running in [each for each in self._running if each.until <= now]:
                    running.abandoned = True
                    self._running.remove(running)
                    hung.append(running)
                if not late and not hung:
                    if self._closed and not self._running and not self.inside:
                        return
                    next_deadline = self._deadlines[0][0] - now if self._deadlines else self.stage_timeout
                    self._clock.wait(min(next_deadline, self.stage_timeout / 10))
            for sample in late:
                if not sample.future.set_running_or_notify_cancel():
                    continue
                if sample.reached is not None:
                    sample.future.set_result(sample.reached)
                else:
                    sample.future.set_exception(LateError("its deadline passed before the first exit"))
            for running in hung:
                stage = running.batch.stage
                self._fail(running.batch, f"stage {stage + 1} did not finish within {self.stage_timeout:g} s")
                self._start(self._run, stage)

    def close(self, seconds: float | None = None) -> bool:
        """Take no more samples, and wait until those inside are answered; return whether all were in time."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            answered = self._empty.wait_for(lambda: not self.inside, seconds)
            self._work.notify_all()
            self._clock.notify_all()
        told = threading.Event()
        self._answers.put(told.set)
        told.wait(seconds if answered else 0)
        return answered


def _answer(gone: Sequence[tuple[_Sample, Left]]) -> None:
    for sample, fate in gone:
        if sample.future.set_running_or_notify_cancel():
            sample.future.set_result(fate)


def _apart(batch: Inside, chosen: npt.NDArray[np.bool_]) -> list[Inside]:
    """Return some samples of a batch, each by itself; those that are not among them are not kept in memory."""
    if not chosen.any():
        return []
    kept = batch if chosen.all() else batch.rows(chosen)
    return [kept.rows(slice(i, i + 1)) for i in range(int(chosen.sum()))]
