"""The scheduler's place in a front on Ray: samples sent from deployment to deployment, and counted."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from exitwise.deploy.chain import Inside
from exitwise.errors import in_a_line
from exitwise.exiting.rule import Thresholds
from exitwise.serving.fates import FullError, LateError, Left, StageCounts, StageError
from exitwise.serving.ray_stages import Failed, Item, Reply


class _GoneError(StageError):
    """A replica was lost, and samples with it that may be run again."""


class Fleet:
    """Takes the scheduler's place in the front: sends each sample from deployment to deployment.

    A sample whose replica is lost is run once more from where it came in.

    Args:
        chain: the stages, which run elsewhere.
        handles: of the deployments, by the first stage (0-based) of each.
        max_batch: samples at once in a stage.
        max_inside: samples that may be inside at a time; others are refused.
        stage_timeout: seconds for a deployment to answer.

    Attributes:
        counts: what each stage has done; batches of several samples count in parts.
        refused, late, lost, inside: as of :class:`~exitwise.serving.scheduler.Scheduler`.
    """

    def __init__(
        self, chain: Any, *, handles: dict[int, Any], max_batch: int, max_inside: int, stage_timeout: float
    ) -> None:
        chain.keep(range(0))
        self.max_batch, self.max_inside, self.stage_timeout = max_batch, max_inside, stage_timeout
        self.counts = [StageCounts() for _ in range(len(chain))]
        self.refused = self.late = self.lost = self.inside = 0
        firsts = [max(first for first in handles if first <= k) for k in range(len(chain))]
        self._handles = [handles[first] for first in firsts]
        self._waiting = [0] * len(chain)

    @property
    def load(self) -> float:
        """Return which share of the samples that may be inside are."""
        return self.inside / self.max_inside

    def waiting(self) -> list[int]:
        """Return how many samples are under way to each stage, or in the batch there."""
        return list(self._waiting)

    def submit(
        self, inside: Inside, thresholds: Thresholds, seconds: float | None = None, stage: int = 0
    ) -> list[Future[Left]]:
        """Take samples in, all or none, as :meth:`~exitwise.serving.scheduler.Scheduler.submit` does; within the loop
        of the front."""
        size, loop = inside.samples, asyncio.get_running_loop()
        if seconds is not None and seconds <= 0:
            self.late += size
            raise LateError("its deadline passed before the first exit")
        if self.inside + size > self.max_inside:
            self.refused += size
            raise FullError(f"{self.inside} samples of at most {self.max_inside} are inside; got {size} more")
        self.inside += size
        end = None if seconds is None else loop.time() + seconds
        futures = []
        for i in range(size):
            sample = Item(inside.rows(slice(i, i + 1)), stage, thresholds)
            future: Future[Left] = Future()
            task = loop.create_task(self._fate(sample, end))
            task.add_done_callback(partial(self._done, future))
            future.add_done_callback(partial(_give_up, task))
            futures.append(future)
        return futures

    def close(self, seconds: float | None = None) -> bool:
        """Return whether nothing is inside: Serve lets a front end when its requests are answered."""
        return not self.inside

    def _done(self, future: Future[Left], task: asyncio.Task[Left]) -> None:
        self.inside -= 1
        if future.cancelled() or not future.set_running_or_notify_cancel():
            return
        if task.cancelled():
            future.set_exception(StageError("it is being stopped"))
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    async def _fate(self, sample: Item, end: float | None) -> Left:
        reached: list[Left] = []
        try:
            async with asyncio.timeout_at(end):
                try:
                    return await self._through(sample, reached)
                except _GoneError:
                    return await self._through(sample, reached)
        except TimeoutError:
            self.late += 1
            if reached:
                return max(reached, key=lambda left: left.exit)
            raise LateError("its deadline passed before the first exit") from None
        except StageError:
            self.lost += 1
            raise

    async def _through(self, sample: Item, reached: list[Left]) -> Left:
        while True:
            reply = await self._ask(sample)
            for batch in reply.spent:
                counts = self.counts[batch.stage]
                counts.batches += 1 / batch.samples
                counts.samples += 1
                counts.seconds += batch.seconds / batch.samples
            if reply.state is None:
                self.counts[reply.left.exit].left += 1
                return reply.left
            reached.append(reply.left)
            sample = Item(reply.state, reply.left.exit + 1, sample.thresholds)

    async def _ask(self, sample: Item) -> Reply:
        k, reply = sample.stage, None
        self._waiting[k] += 1
        try:
            async with asyncio.timeout(self.stage_timeout):
                reply = await _answer(self._handles[k].remote(sample))
        except TimeoutError:
            error = StageError(f"stage {k + 1} did not answer within {self.stage_timeout:g} s")
        except RayActorError as lost:
            error = _GoneError(f"a replica of stage {k + 1} was lost: {in_a_line(lost)}")
        except (RayError, RayServeException) as failure:
            error = StageError(f"stage {k + 1} failed: {in_a_line(failure)}")
        finally:
            self._waiting[k] -= 1
        if isinstance(reply, Reply):
            return reply
        if isinstance(reply, Failed):
            error = (_GoneError if reply.gone else StageError)(f"stage {k + 1} failed: {reply.why}")
        self.counts[k].failures += 1
        raise error


async def _answer(response: Any) -> Reply | Failed:
    try:
        reply: Reply | Failed = await response
        return reply
    except asyncio.CancelledError:
        response.cancel()
        raise


def _give_up(task: asyncio.Task[Left], future: Future[Left]) -> None:
    if future.cancelled():
        task.cancel()
