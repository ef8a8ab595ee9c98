"""A bundle on Ray Serve: a deployment per stage or group of stages, behind one address. Only survivors travel on.

The front reads requests and keeps each sample's thresholds and deadline. A replica of stages batches what comes to it
by Serve's own batching: the next batch is what waits when the last one is done. States of those that stay lie in Ray's
object store; the front hands on where they lie, and the next replica fetches them from there.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from exitwise.deploy.bundle import read_bundle
from exitwise.deploy.chain import Inside
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.states import bundle_digest
from exitwise.errors import UserError, in_a_line
from exitwise.exiting.rule import Thresholds
from exitwise.processes.cluster import cluster
from exitwise.serving.access import Access
from exitwise.serving.app import Limits, create_app
from exitwise.serving.scheduler import FullError, LateError, Left, StageCounts, StageError, goes, said
from exitwise.serving.service import Service

NAME = "exitwise"
"""Of the application."""

HEALTH_SECONDS = 5
"""Between two looks at a replica."""

Replicas = int | tuple[int, int]
"""Of a deployment: so many, or from least to most as the load is."""


class Kept(NamedTuple):
    """Where the state of a sample lies: which row of what in Ray's object store."""

    batch: Any
    row: int


class Item(NamedTuple):
    """A sample before a stage (0-based), and the thresholds that it leaves by."""

    state: Inside | Kept
    stage: int
    thresholds: Thresholds


class Spent(NamedTuple):
    """A batch that a sample was in: of which stage, with how many, for how long."""

    stage: int
    samples: int
    seconds: float


class Reply(NamedTuple):
    """What stages say of a sample: its fate at the last exit that it came to, where its state lies if it goes on (its
    fate is not ``in_time`` then), and the batches that it was in."""

    left: Left
    state: Kept | None
    spent: tuple[Spent, ...]


class Failed(NamedTuple):
    """Stages that failed, why, and whether it was for a state that is gone, with the replica that kept it."""

    why: str
    gone: bool = False


class Stages:
    """A replica of some stages.

    Args:
        bundle: its folder, on every machine.
        digest: by which it is recognised.
        first, end: stages from and before which, 0-based.
        max_batch: samples at once.
        timeout: seconds after which a batch is taken to hang, and the replica is replaced.
        how: threads and provider, of :class:`~exitwise.OnnxRunner`.

    Raises:
        UserError: if another bundle lies here.
    """

    def __init__(
        self, bundle: str, digest: str, first: int, end: int, max_batch: int, timeout: float, how: dict[str, Any]
    ) -> None:
        check_same(bundle, digest)
        self._chain, self._end = OnnxRunner(bundle, **how).chain, end
        self._chain.keep(range(first, end))
        self._timeout, self._began = timeout, 0.0

        async def together(items: list[Item]) -> list[Reply | Failed]:
            return await asyncio.to_thread(self._run, items)

        self._together = serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=0.0)(together)

    async def __call__(self, item: Item) -> Reply | Failed:
        """Run a sample through the stages until it leaves, with those that wait beside it."""
        reply: Reply | Failed = await self._together(item)
        return reply

    def check_health(self) -> None:
        """Raise RuntimeError where a batch hangs: Serve replaces the replica then."""
        if self._began and time.monotonic() - self._began > self._timeout:
            raise RuntimeError(f"a batch did not finish within {self._timeout:g} s")

    def _run(self, items: list[Item]) -> list[Reply | Failed]:
        replies: list[Reply | Failed] = [Failed("its state is gone", gone=True)] * len(items)
        alike: dict[Any, list[tuple[int, Inside]]] = defaultdict(list)
        for place, inside in enumerate(_fetched(items)):
            if inside is not None:
                alike[items[place].stage, inside.shapes].append((place, inside))
        for (stage, _), some in alike.items():
            places = [place for place, _ in some]
            try:
                found = self._through(
                    stage, Inside.together([inside for _, inside in some]), [items[i].thresholds for i in places]
                )
            except Exception as error:  # whatever a stage raises costs its batch alone
                found = [Failed(in_a_line(error))] * len(places)
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply
        return replies

    def _through(self, first: int, inside: Inside, thresholds: list[Thresholds]) -> list[Reply | Failed]:
        lefts: list[Any] = [None] * inside.samples
        spent: list[tuple[Spent, ...]] = [()] * inside.samples
        places = list(range(inside.samples))
        for k in range(first, self._end):
            self._began = time.monotonic()
            try:
                answer, inside = self._chain.step(k, inside)
            except Exception:
                self._chain.restart(k)
                raise
            finally:
                batch, self._began = Spent(k, len(places), time.monotonic() - self._began), 0.0
            leaving = goes(answer, k, [thresholds[place] for place in places])
            for i, place in enumerate(places):
                lefts[place] = said(answer, i, k, thresholds[place], leaving[i])
                spent[place] += (batch,)
            places = [place for place, gone in zip(places, leaving, strict=True) if not gone]
            if not places:
                break
            if any(leaving):
                inside = inside.rows([not gone for gone in leaving])
        kept = ray.put(inside) if places else None
        rows = {place: Kept(kept, row) for row, place in enumerate(places)}
        return [Reply(left, rows.get(place), spent[place]) for place, left in enumerate(lefts)]


def _fetched(items: Sequence[Item]) -> list[Inside | None]:
    """Return samples as arrays; None for one whose state is gone."""
    there: dict[Any, Inside | None] = {}
    for item in items:
        if isinstance(item.state, Kept) and item.state.batch not in there:
            there[item.state.batch] = None
            with suppress(RayError):
                there[item.state.batch] = ray.get(item.state.batch)
    found: list[Inside | None] = []
    for item in items:
        if isinstance(item.state, Inside):
            found.append(item.state)
            continue
        batch = there[item.state.batch]
        found.append(None if batch is None else batch.rows(slice(item.state.row, item.state.row + 1)))
    return found


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


class _Deployed(Service):
    def reload(self) -> None:
        """Raise UserError: stages and front are of one bundle."""
        raise UserError("a bundle on Ray is replaced by deploying another; got a reload")


_apps: list[FastAPI] = []


def _app() -> FastAPI:
    """Return the server that the front of this process has made."""
    return _apps[-1]


@serve.ingress(_app)
class Front:
    """What is asked over HTTP: reads it, sends samples through the deployments, answers.

    Args:
        handles: of the deployments, by their first stages.
        bundle: its folder.
        digest: by which it is recognised.
        tokens: files of :meth:`~exitwise.serving.access.Access.of`.
        limits: of requests.
        options: of :class:`~exitwise.serving.service.Service`.
    """

    def __init__(
        self,
        handles: dict[int, Any],
        bundle: str,
        digest: str,
        tokens: tuple[str | None, str | None],
        limits: Limits,
        options: dict[str, Any],
    ) -> None:
        check_same(bundle, digest)
        service = _Deployed(
            Path(bundle), schedule=partial(Fleet, handles=handles), threads=1, provider="cpu", **options
        )
        _apps.append(create_app(service, Access.of(*tokens), limits))


def check_same(bundle: str, digest: str) -> None:
    """Raise UserError unless the bundle that lies here is the one that was deployed."""
    if bundle_digest(Path(bundle)) != digest:
        raise UserError(f"expected the bundle that was deployed at {bundle}, on every machine; got another")


def serve_app(
    bundle: str | PathLike[str],
    replicas: str | Sequence[Replicas] = (),
    *,
    budget: float | None = None,
    shed_compute: bool = False,
    max_batch: int = 16,
    max_queue: int = 256,
    max_body_mb: float = 16.0,
    max_pixels: int = 50_000_000,
    timeout: float = 30.0,
    token_file: str | PathLike[str] | None = None,
    change_token_file: str | PathLike[str] | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> serve.Application:
    """Return the Ray Serve application of a bundle, for ``ray.serve.run`` or a configuration file.

    Args:
        bundle: an exported bundle, at the same path on every machine.
        replicas: of each stage in turn, such as ``(4, 2, 1)`` or ``"4,2,1"``; (1, 4) or ``"1-4"`` is from least to
            most, as the load is. The last is of all stages that are left together; without any, each has one.
        threads: of a replica: the cores that it reserves.
        device: ONNX Runtime's provider; a replica reserves a GPU for cuda and tensorrt.
        budget, shed_compute, max_batch, max_queue, max_body_mb, max_pixels, timeout, token_file, change_token_file: as
            of :func:`~exitwise.serve`; files of tokens lie on every machine.

    Raises:
        UserError: if the bundle is not what it says, or a number is out of range.
    """
    runner = OnnxRunner(Path(bundle), 1)
    if budget is not None:
        runner.thresholds_for(budget)
    Access.of(token_file, change_token_file)
    numbers = {"max_batch": max_batch, "max_queue": max_queue, "max_body_mb": max_body_mb, "max_pixels": max_pixels}
    for name, value in {**numbers, "timeout": timeout, "threads": threads}.items():
        if not value > 0:
            raise UserError(f"expected {name} above 0; got {value}")
    place, digest = str(Path(bundle).absolute()), bundle_digest(Path(bundle))
    counts = parse_replicas(replicas, len(runner.chain))
    reserved = {"num_cpus": threads, "num_gpus": int(device in ("cuda", "tensorrt"))}
    how = {"threads": threads, "provider": device}
    handles = {}
    for first, (least, most) in enumerate(counts):
        end = first + 1 if first + 1 < len(counts) else len(runner.chain)
        deployment = serve.deployment(
            Stages,
            name=f"stage-{end}" if end == first + 1 else f"stages-{first + 1}-{end}",
            max_ongoing_requests=max_queue,
            ray_actor_options=reserved,
            health_check_period_s=HEALTH_SECONDS,
            **(
                {"num_replicas": least}
                if least == most
                else {
                    "autoscaling_config": {
                        "min_replicas": least,
                        "max_replicas": most,
                        "target_ongoing_requests": 2 * max_batch,
                    }
                }
            ),
        )
        handles[first] = deployment.bind(place, digest, first, end, max_batch, timeout, how)
    options = {
        "budget": budget,
        "shed_compute": shed_compute,
        "max_pixels": max_pixels,
        "max_batch": max_batch,
        "max_inside": max_queue,
        "stage_timeout": timeout,
    }
    tokens = tuple(None if file is None else str(Path(file).absolute()) for file in (token_file, change_token_file))
    front = serve.deployment(Front, name="front", max_ongoing_requests=4 * max_queue)
    return front.bind(handles, place, digest, tokens, Limits(int(max_body_mb * 2**20), timeout), options)


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application for a configuration file, whose ``args`` are the arguments of :func:`serve_app`."""
    return serve_app(**args)


def parse_replicas(replicas: str | Sequence[Replicas], stages: int) -> list[tuple[int, int]]:
    """Return the least and the most replicas of each deployment; the last is of all stages that are left.

    Raises:
        UserError: for numbers that are none, below 1 or too many.
    """
    wanted: Sequence[Replicas | str] = replicas.split(",") if isinstance(replicas, str) else replicas
    found = []
    for each in wanted or [1] * stages:
        try:
            ends = each.split("-") if isinstance(each, str) else [each] if isinstance(each, int) else each
            least, most = int(ends[0]), int(ends[-1])
        except (ValueError, TypeError, IndexError):
            least = most = 0
        if not 1 <= least <= most:
            raise UserError(f"expected replicas as 4,2,1 or 1-4,1-2,1; got {replicas}")
        found.append((least, most))
    if len(found) > stages:
        raise UserError(f"expected replicas of at most {stages} stages; got {replicas}")
    return found


def cores_of(bundle: str | PathLike[str], replicas: str | Sequence[Replicas], threads: int) -> int:
    """Return how many cores a bundle's replicas reserve, at most, with the front's."""
    return 1 + threads * sum(most for _, most in parse_replicas(replicas, len(read_bundle(Path(bundle)).stages)))


def run(app: serve.Application, host: str, port: int, cores: int, ready: Callable[[str], None] | None) -> None:
    """Serve an application until SIGTERM or Ctrl-C: on the cluster that ``RAY_ADDRESS`` names, or on Ray processes of
    its own on this machine, where replicas that reserve so many cores share those that there are.

    Raises:
        UserError: if it cannot be served.
    """
    port = _free(host, port)
    ended = threading.Event()
    with cluster(cores) as ours:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not in this thread
                signal.signal(number, lambda *_: ended.set())
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(app, name=NAME, route_prefix="/")
            if ready is not None:
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            ended.wait()
            serve.delete(NAME)
        except (RuntimeError, RayError, RayServeException) as error:
            raise UserError(f"Ray Serve does not run it: {in_a_line(error)}") from error
        finally:
            if ours:
                with suppress(Exception):
                    serve.shutdown()


def _free(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            found: int = listening.getsockname()[1]
            return found
    except (OSError, OverflowError) as error:
        raise UserError(f"expected an address to listen at; {host}:{port} is none: {error}") from error
