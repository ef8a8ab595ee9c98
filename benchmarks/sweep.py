"""Which networks can be given exits: three on each, tried one by one in processes of their own.

    python benchmarks/sweep.py --check --json results/sweep.json
    python benchmarks/sweep.py --part hf-images --name Swin
    python benchmarks/sweep.py --quick --check

Cut: at least one early exit between 10 and 90 % of the cost and 8 points from its neighbours, last exit equal to the
backbone to 1e-5, also for the samples that are left when others have gone. Whole: with ``skip=False`` there are as many
exits, and the last one is the backbone. Raw error: any but a UserError.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from common import Bar, finish, parser
from sweep_networks import PARTS, QUICK, Built, build
from torch.utils._pytree import tree_map

EXITS = 3
CLOSE = 1e-5
LEAST, MOST, APART = 0.10, 0.90, 0.08


class Found(NamedTuple):
    """What became of one network.

    Attributes:
        verdict: ``cut``, ``useless`` (exits where they save nothing), ``refused``, ``wrong`` (another last exit),
            ``raw error``, ``too long``.
        shares: of the cost, of the early exits.
        whole: whether it works with ``skip=False``.
        note: the error.
    """

    verdict: str
    shares: list[float]
    whole: bool
    note: str
    seconds: float


def is_useful(shares: Sequence[float]) -> bool:
    """Return whether one early exit lies between 10 and 90 % of the cost and 8 points from its neighbours."""
    for k, share in enumerate(shares):
        others = (*shares[:k], *shares[k + 1 :])
        if LEAST <= share <= MOST and all(abs(share - other) >= APART for other in others):
            return True
    return False


def try_network(part: str, name: str) -> Found:
    """Give one network exits, with and without cutting it."""
    from exitwise import add_exits
    from exitwise.errors import UserError

    start = time.perf_counter()
    verdict, shares, whole, notes = "cut", [], False, []
    try:
        built = build(part, name)
        model = add_exits(built.network, exits=EXITS, example=built.example).eval()
        shares = [point.share for point in model.points]
        verdict = ("cut" if is_useful(shares) else "useless") if is_backbone(built, model, skips=True) else "wrong"
    except UserError as error:
        verdict, notes = "refused", [str(error)]
    except Exception as error:
        verdict, notes = "raw error", [_where(error)]
    try:
        built = build(part, name)
        model = add_exits(built.network, exits=EXITS, example=built.example, skip=False).eval()
        whole = is_backbone(built, model, skips=False)
        notes += [] if whole else ["skip=False: another last exit"]
    except Exception as error:
        verdict = verdict if isinstance(error, UserError) else "raw error"
        notes.append(f"skip=False: {_where(error)}")
    return Found(verdict, shares, whole, " | ".join(notes), time.perf_counter() - start)


def is_backbone(built: Built, model: Any, *, skips: bool) -> bool:
    """Return whether the last exit is the backbone, also for one sample that goes on alone."""
    from exitwise.kernels.inputs import varied
    from exitwise.models.backbones.backbone import answer

    inputs = varied(built.example, 2, next(built.network.parameters()), seed=1)
    with torch.no_grad():
        expected = answer(built.network, inputs)
        *_, last = model(inputs)
        same = torch.allclose(last, expected, rtol=CLOSE, atol=CLOSE * float(expected.abs().max()))
        if same and skips:
            state = tree_map(lambda part: part[1:], model.stages[0].body(inputs))
            for stage in model.stages[1:]:
                state = stage.body(state)
            alone = model.stages[-1].head(state)
            same = torch.allclose(alone, expected[1:], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return same


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}:{last.lineno})"


def _work(connection: Connection) -> None:
    """Try what comes through the connection, one network after the other."""
    os.nice(5)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while task := connection.recv():
        torch.manual_seed(0)
        connection.send(try_network(*task))


class _Worker:
    """A process that tries networks, and is replaced when one takes too long."""

    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.task: tuple[str, str] | None = None
        self.since = 0.0

    def give(self, task: tuple[str, str]) -> None:
        self.task, self.since = task, time.monotonic()
        self.connection.send(task)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def sweep(tasks: Sequence[tuple[str, str]], jobs: int, limit: float) -> Iterator[tuple[str, str, Found]]:
    """Yield part, name and result of each network, as they are done; ``limit`` in seconds for each."""
    waiting = list(reversed(tasks))
    workers = [_Worker() for _ in range(min(jobs, len(tasks)))]
    for worker in workers:
        worker.give(waiting.pop())
    while any(worker.task for worker in workers):
        wait([worker.connection for worker in workers if worker.task], timeout=1)
        for index, worker in enumerate(workers):
            if worker.task is None:
                continue
            late = time.monotonic() - worker.since > limit
            if worker.connection.poll():
                try:
                    found = worker.connection.recv()
                except EOFError:
                    found = Found("raw error", [], False, "the process died", 0.0)
                    late = True
            elif late:
                found = Found("too long", [], False, f"more than {limit:g} s", limit)
            else:
                continue
            yield *worker.task, found
            if late:
                worker.stop()
                worker = workers[index] = _Worker()
            worker.task = None
            if waiting:
                worker.give(waiting.pop())
    for worker in workers:
        worker.stop()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=list(PARTS), help="one part alone")
    arguments.add_argument("--name", action="append", help="these networks of the part alone")
    arguments.add_argument("--quick", action="store_true", help="one network of each kind, in less than a minute")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments.add_argument("--limit", type=float, default=240, help="seconds for a network")
    options = arguments.parse_args()
    parts = {part: QUICK[part] if options.quick else names for part, names in PARTS.items()}
    tasks = [
        (part, name)
        for part, names in parts.items()
        for name in names
        if options.part in (None, part) and (not options.name or name in options.name)
    ]
    rows: dict[str, dict[str, Found]] = {}
    for part, name, found in sweep(tasks, options.jobs, options.limit):
        rows.setdefault(part, {})[name] = found
        shares = " ".join(f"{100 * share:.0f}" for share in found.shares)
        whole = "" if found.whole else "not whole"
        print(
            f"{part:12}{name:44}{found.verdict:11}{shares:8}{whole:11}{found.seconds:5.1f} s  {found.note}", flush=True
        )
    bars = []
    print(f"\n{'':14}{'of':>5}{'cut':>6}{'refused':>9}{'useless':>9}{'wrong':>7}{'errors':>8}{'whole':>7}")
    for part, networks in rows.items():
        count = Counter(each.verdict for each in networks.values())
        errors = count["raw error"] + count["too long"]
        skipped = sum(each.whole for each in networks.values())
        cells = (count["cut"], count["refused"], count["useless"], count["wrong"], errors, skipped)
        print(
            f"{part:14}{len(networks):5}" + "".join(f"{c:{w}}" for c, w in zip(cells, (6, 9, 9, 7, 8, 7), strict=True))
        )
        allowed = 0 if options.quick else MAY_FAIL[part]
        bars.append(Bar(f"{part}: not cut, of {len(networks)}", len(networks) - count["cut"], allowed))
        bars.append(Bar(f"{part}: raw errors and other last exits", errors + count["wrong"], 0))
        neither = sum(each.verdict != "cut" and not each.whole for each in networks.values())
        bars.append(Bar(f"{part}: neither cut nor whole", neither, NEITHER[part]))
    figures = {part: {name: each._asdict() for name, each in sorted(found.items())} for part, found in rows.items()}
    finish(options, figures, bars)


MAY_FAIL = {"timm": 3, "torchvision": 0, "hf-images": 3, "hf-texts": 4}
"""How many networks of a part need not be cut."""
NEITHER = {"timm": 0, "torchvision": 0, "hf-images": 1, "hf-texts": 1}
"""How many need not be left whole either: Siglip2 takes patches with their places, and Albert has one layer, used again
and again."""


if __name__ == "__main__":
    main()
