"""Stages of a bundle as a Ray Serve deployment: what a replica is sent, does, and replies.

A replica batches what comes to it by Serve's own batching: the next batch is what waits when the last one is done.
States of those that stay lie in Ray's object store.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayError

from exitwise.deploy.chain import Inside
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.states import bundle_digest
from exitwise.errors import UserError, in_a_line
from exitwise.exiting.rule import Thresholds
from exitwise.serving.fates import Left, goes, said


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


def check_same(bundle: str, digest: str) -> None:
    """Raise UserError unless the bundle that lies here is the one that was deployed."""
    if bundle_digest(Path(bundle)) != digest:
        raise UserError(f"expected the bundle that was deployed at {bundle}, on every machine; got another")
