"""What batching again between stages gains under load, against batching once at the entrance, and against no exits.

Stages are timers that behave as a GPU does: flat up to a batch of 16, then linear. Three systems run in turn on the
same samples: a queue per stage (ours), one queue at the entrance whose batches shrink from exit to exit, and the full
network. Goodput is what is answered per second while 99 % of the answers take at most the limit.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import serving_loopback as loopback
from common import Bar, finish, parser

from exitwise.deploy.chain import Answer, Inside
from exitwise.exiting.rule import leaves
from exitwise.serving.fates import Left
from exitwise.serving.scheduler import Scheduler

LEAVING = (0.5, 0.2, 0.15, 0.15)
STAGE_SECONDS, FLAT, LIMIT = 0.005, 16, 0.080
THRESHOLDS = (0.5,) * (len(LEAVING) - 1)
WAIT = 0.75 * LIMIT
"""Of a sample, from which it soon goes before fuller queues."""

ENDLESS = 10**6


def oversleep() -> float:
    """Return by how much a sleep is too long here, which the timers take off."""
    late = []
    for _ in range(100):
        start = time.perf_counter()
        time.sleep(STAGE_SECONDS)
        late.append(time.perf_counter() - start - STAGE_SECONDS)
    return float(np.median(late))


class Timers:
    """Stages of a device that runs a batch at a time. A sample's one number is the exit that it is sure at.

    Args:
        times: seconds of each stage, up to a batch of :data:`FLAT`.
        late: seconds that a sleep is too long.
    """

    def __init__(self, times: Sequence[float], late: float) -> None:
        self.times, self.late = times, late
        self.device = threading.Lock()

    def __len__(self) -> int:
        return len(self.times)

    def step(self, k: int, inside: Inside) -> tuple[Answer, Inside]:
        """Take as long as the device would."""
        exits = inside.arrays["exit"]
        with self.device:
            time.sleep(max(0.0, self.times[k] * max(1.0, len(exits) / FLAT) - self.late))
        return Answer((exits <= k).astype(np.float32), exits, None), inside

    def restart(self, k: int) -> None:
        """Nothing hangs here."""


class AtEntrance:
    """The same stages behind one queue: a batch is made once, and samples that leave are dropped from it."""

    def __init__(self, stages: Any, *, max_batch: int, max_inside: int, workers: int = 1, **others: Any) -> None:
        self.stages, self.max_batch, self.max_inside, self.workers = stages, max_batch, max_inside, workers
        self.inside = self.refused = 0  # nothing is refused
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(workers):
            threading.Thread(target=self._run, daemon=True).start()

    def submit(self, inside: Inside, thresholds: Sequence[float | None], _: Any = None) -> list[Future[Left]]:
        """Take a sample in."""
        future: Future[Left] = Future()
        self.waiting.put((inside, tuple(thresholds), future))
        return [future]

    def _run(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch = [first]
            while len(batch) < self.max_batch and not self.waiting.empty():
                batch.append(self.waiting.get())
            if None in batch:
                self.waiting.put(None)  # for the next worker
                return
            inside = Inside.together([each[0] for each in batch])
            for k in range(len(self.stages)):
                answer, inside = self.stages.step(k, inside)
                leaving = leaves(answer.confidence, k, batch[0][1])
                for i in np.flatnonzero(leaving):
                    logits = None if answer.logits is None else answer.logits[i]
                    batch[i][2].set_result(Left(k, int(answer.prediction[i]), 1.0, logits, batch[i][1]))
                if leaving.all():
                    break
                batch = [each for each, gone in zip(batch, leaving, strict=True) if not gone]
                inside = inside.rows(~leaving)

    def close(self, _: float | None = None) -> bool:
        """Stop."""
        self.waiting.put(None)
        return True


class Load(NamedTuple):
    """What came of a load: it (samples inside at a time, or arrivals per second), answers per second, and the 99th
    percentile of their seconds."""

    load: float
    rate: float
    p99: float

    def __str__(self) -> str:
        return f"{self.load:6.0f} {self.rate:8.0f}/s  p99 {1000 * self.p99:6.1f} ms"


def samples(seed: int) -> Callable[[], Inside]:
    """Return what gives a stream of samples that leave as :data:`LEAVING` says."""
    exits = np.random.default_rng(seed).choice(len(LEAVING), ENDLESS // 10, p=LEAVING)
    numbers = itertools.cycle(exits)
    return lambda: Inside({"exit": np.array([next(numbers)])})


def measured(load: float, latencies: Sequence[tuple[float, float]], seconds: float) -> Load:
    """Return figures of answers, as (time of answer, seconds), without the first fifth of the time."""
    kept = [each for at, each in latencies if 0.2 * seconds <= at <= seconds]
    return Load(load, len(kept) / (0.8 * seconds), float(np.quantile(kept, 0.99)) if kept else np.inf)


def closed_loop(system: Any, sample: Callable[[], Inside], inside: int, seconds: float) -> Load:
    """Keep so many samples inside."""
    start, latencies = time.perf_counter(), []

    def ask(_: Any = None) -> None:
        began = time.perf_counter()
        if began - start < seconds:
            (future,) = system.submit(sample(), THRESHOLDS)
            future.add_done_callback(lambda _: answered(began))

    def answered(began: float) -> None:
        now = time.perf_counter()
        latencies.append((now - start, now - began))
        ask()

    for _ in range(inside):
        ask()
    time.sleep(seconds + 0.5)
    system.close(1)
    return measured(inside, latencies, seconds)


def open_loop(system: Any, sample: Callable[[], Inside], rate: float, seconds: float, seed: int) -> Load:
    """Let samples arrive by chance, at times that the seed fixes."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.2)))
    start, latencies = time.perf_counter(), []

    def answered(began: float) -> None:
        now = time.perf_counter()
        latencies.append((now - start, now - began))

    for at in times[times < seconds]:
        pause = start + at - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        (future,) = system.submit(sample(), THRESHOLDS)
        future.add_done_callback(lambda _, began=start + at: answered(began))
    system.close(5)
    time.sleep(0.1)
    return measured(rate, latencies, seconds)


def best(loads: Sequence[Load]) -> Load:
    """Return the load with the most answers within the limit."""
    return max(loads, key=lambda each: each.rate if each.p99 <= LIMIT else -each.p99)


def goodput_of_timers(seconds: float) -> tuple[dict[str, Any], list[Bar]]:
    """Return figures and bars of the three systems on timers."""
    late = oversleep()
    stay = 1 - np.cumsum((0.0, *LEAVING[:-1]))
    bound = FLAT / (STAGE_SECONDS * stay.sum())
    times = [STAGE_SECONDS] * len(LEAVING)
    whole = [STAGE_SECONDS * len(LEAVING)]
    systems: dict[str, list[tuple[Any, list[float], int, Sequence[int]]]] = {
        "a queue per stage, at most 16": [(Scheduler, times, 16, range(28, 53, 4))],
        "at the entrance, at most 16": [(AtEntrance, times, 16, range(24, 57, 8))],
        "full network, at most 16": [(Scheduler, whole, 16, range(16, 49, 16))],
        "a queue per stage, any size": [(Scheduler, times, 1024, range(36, 81, 6))],
        "at the entrance, any size": [(AtEntrance, times, size, range(48, 89, 8)) for size in (48, 96)],
    }
    figures: dict[str, Any] = {"bound": bound, "oversleep": late}
    print(f"bound: {bound:.0f}/s; timers are {1e6 * late:.0f} us late, which is taken off")
    found = {}
    for name, ways in systems.items():
        print(f"{name}, so many inside:")
        loads = []
        for make, stage_times, size, counts in ways:
            for inside in counts:
                system = make(Timers(stage_times, late), max_batch=size, max_inside=ENDLESS, max_wait=WAIT)
                exits = samples(0) if len(stage_times) > 1 else lambda: Inside({"exit": np.zeros(1, np.int64)})
                loads.append(closed_loop(system, exits, inside, seconds))
                print(f"  {loads[-1]}{f'  batches up to {size}' if len(ways) > 1 else ''}", flush=True)
        found[name] = best(loads)
        figures[name] = {"best": found[name]._asdict(), "loads": [each._asdict() for each in loads]}
    for name, make in (("a queue per stage", Scheduler), ("at the entrance", AtEntrance)):
        print(f"{name}, at most 16, arriving by chance:")
        loads = []
        for rate in (600, 700, 800) if make is AtEntrance else (800, 1000, 1200, 1300, 1400):
            system = make(Timers(times, late), max_batch=16, max_inside=ENDLESS, max_wait=WAIT)
            loads.append(open_loop(system, samples(1), rate, seconds, seed=2))
            print(f"  {loads[-1]}", flush=True)
        figures[f"{name}, open loop"] = [each._asdict() for each in loads]
    ours, entrance, _, ours_any, entrance_any = (found[name] for name in systems)
    return figures, [
        Bar("goodput over the entrance's, batches up to 16", ours.rate / entrance.rate, 1.5, at_most=False),
        Bar("goodput over the bound", ours.rate / bound, 0.85, at_most=False),
        Bar("goodput over the entrance's, any batches", ours_any.rate / entrance_any.rate, 0.95, at_most=False),
    ]


def capacity_of_resnet(seconds: float, rounds: int) -> tuple[dict[str, Any], list[Bar]]:
    """Return figures and bars of servers on loopback that keep a client's 32 requests under way."""
    files = loopback.pictures()
    systems = {
        **{f"ours, {size}": ("ours", size) for size in (4, 8, 16)},
        **{f"entrance, {size}": ("entrance", size) for size in (4, 8, 16, 32)},
        "full, 8": ("full", 8),
        "full, 16": ("full", 16),
        **({"litserve, 8": ("litserve", 8)} if find_spec("litserve") else {}),
    }
    if not find_spec("litserve"):
        print("LitServe is not there (pip install litserve): it is left out")
    with TemporaryDirectory() as place:
        folder = Path(place)
        loopback.write_bundles(folder, files)
        stages, whole = loopback.stage_seconds(folder, files, 8, threads=1)
        stay = 1 - np.cumsum((0.0, *LEAVING[:-1]))
        promised = whole / float(np.dot(stay, stages))
        print(f"stages: {', '.join(f'{1000 * each:.1f}' for each in stages)} ms an image, full {1000 * whole:.1f} ms")
        rates: dict[str, list[float]] = {name: [] for name in systems}
        servers = {}
        for name, (system, size) in systems.items():
            servers[name] = loopback.Server(system, folder, size)
            servers[name].pause()
        for turn, (name, server) in itertools.product(range(rounds + 1), servers.items()):
            bodies = [loopback.body_of(systems[name][0], file) for file in files]
            server.resume()
            answers = loopback.closed(server.port, bodies, 32, seconds if turn else 1.0)
            server.pause()
            if turn:  # the first wakes it
                load = measured(32, answers.latencies, seconds)
                rates[name].append(load.rate)
                print(f"  {name:14} {load}  {dict(answers.statuses)}", flush=True)
        for server in servers.values():
            server.close()
    medians = {name: float(np.median(each)) for name, each in rates.items()}

    def most(system: str) -> float:
        return max(rate for name, rate in medians.items() if name.startswith(system))

    figures = {"stages": stages, "full": whole, "promised": promised, "rates": rates}
    gain = most("ours") / most("full")
    print(f"over the full network: {gain:.2f} times; the stages' own times promise {promised:.2f}")
    return figures, [
        Bar("capacity over the entrance's", most("ours") / most("entrance"), 0.97, at_most=False),
        Bar("gain over the full network, of what stages promise", gain / promised, 0.9, at_most=False),
    ]


def main() -> None:
    """Measure."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seconds", type=float, default=4.0, help="of each load")
    arguments.add_argument("--rounds", type=int, default=3, help="of the servers on loopback")
    arguments.add_argument("--only", choices=("timers", "resnet"))
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    if options.only != "resnet":
        figures["timers"], found = goodput_of_timers(options.seconds)
        bars += found
    if options.only != "timers":
        figures["resnet"], found = capacity_of_resnet(options.seconds, options.rounds)
        bars += found
    finish(options, figures, bars)


if __name__ == "__main__":
    main()
