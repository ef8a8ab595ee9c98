"""What early exits save on this machine: a run's network in full, leaving early, and cut at one exit, timed in turn.

Answers "is it worth it here?" from times, not from MACs.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitwise.bench.timing import interleaved_seconds, warn_if_busy
from exitwise.data import Splits
from exitwise.errors import UserError
from exitwise.evaluation.outputs import Outputs, anytime, operate
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner, compiled
from exitwise.models import count_cost, create_model
from exitwise.models.cost import count_alone
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run, environment, pick_device, preprocessing_of
from exitwise.storage.files import write_json
from exitwise.training.compiled import check_compiler

FormName = Literal["eager", "compiled", "onnx"]
FORMS: tuple[FormName, ...] = ("eager", "compiled", "onnx")
BUDGETS, BATCH_SIZES = (0.3, 0.5, 0.7), (1, 8, 64)
REPEATS = 3
"""Times that each batch is run: their median counts."""

MOST_BATCHES, FEWEST_BATCHES = 64, 4
WORTH = 1.1
"""How much faster it must be to be worth it."""


class Network(NamedTuple):
    """One of those compared: ``full`` (without early exits), ``early`` or ``static``, with what it is known for.

    Attributes:
        name: for people.
        kind: of the three.
        accuracy: on the test images; None where unknown.
        macs: mean multiply-accumulates per image; None where unknown.
    """

    name: str
    kind: Literal["full", "early", "static"]
    accuracy: float | None
    macs: float | None


@dataclass(frozen=True)
class Row:
    """A network in one form at one batch size.

    Attributes:
        network: which.
        form: how it runs.
        batch_size: images per call.
        mean: seconds per call, the mean over batches of their median.
        p50, p95, p99: percentiles of seconds per call.
    """

    network: Network
    form: FormName
    batch_size: int
    mean: float
    p50: float
    p95: float
    p99: float

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.batch_size / self.mean


@dataclass(frozen=True)
class Bench:
    """Result of :func:`bench`: all rows, what it says for each batch size, and which forms were left out, why."""

    rows: list[Row]
    verdicts: dict[int, str]
    left_out: dict[str, str]

    def full(self, row: Row) -> Row:
        """The full network in the same form and batch size."""
        return next(r for r in self.rows if (r.form, r.batch_size) == (row.form, row.batch_size))


Call = Callable[[Any], object]
Calls = dict[Network, Call]


def bench(
    path: str | Path,
    *,
    forms: Sequence[FormName] = FORMS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = BUDGETS,
    static: Sequence[str] = (),
    seconds: float = 60.0,
    device: str = "auto",
    tell: Callable[[str], object] = lambda message: None,
) -> Bench:
    """Time a run's network on its test images and record the result in bench.json.

    Compared are the full network without its early exits, the early-exit runner at each budget (the compiled and the
    ONNX form at the middle one), and as static network the first exit that alone is as accurate on the calibration
    images as leaving early at the middle budget.

    Args:
        path: the run folder.
        forms: of the network.
        batch_sizes: images per call.
        budgets: shares of the full network's MACs, ascending; those below the first exit's are left out.
        static: further networks to compare with: run folders, or names for :func:`create_model`, of which only the
            time is known.
        seconds: about how long to measure, compiling and exporting aside.
        device: where; ONNX runs on the CPU.
        tell: is told what is done next.

    Raises:
        UserError: for unknown forms, a batch size below 1, budgets out of reach, or an unknown static network.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise UserError(f"expected forms among {', '.join(FORMS)}; got {', '.join(unknown) or 'none'}")
    if not 0 < seconds < math.inf:
        raise UserError(f"expected a positive number of seconds; got {seconds:g}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"expected batch sizes of at least 1; got {list(batch_sizes)}")
    run, place = Run(path), pick_device(device)
    warn_if_busy()
    others = {name: _other(name, run, place) for name in static}
    model, splits = run.model(place), run.splits()
    networks, policies, cut = _networks(model, splits, budgets, place, run.settings.workers)
    images = _images(splits, max(*batch_sizes, MOST_BATCHES))
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    per_form = seconds / len(forms) / len(batch_sizes)
    for form in forms:
        tell(f"{form} ..." if form != "compiled" else "compiled (torch.compile takes minutes) ...")
        try:
            with _form(form, run, model, networks, policies, cut, place) as calls:
                if form == "eager":
                    calls = {**calls, **dict(others.values())}
                for batch_size in batch_sizes:
                    rows += _measure(form, calls, _batches(form, images, batch_size, place), batch_size, per_form)
        except UserError as error:
            left_out[form] = str(error)
    if not rows:
        raise UserError(f"none of the forms runs here: {'; '.join(left_out.values())}")
    verdicts = {batch_size: verdict([r for r in rows if r.batch_size == batch_size]) for batch_size in batch_sizes}
    result = Bench(rows, verdicts, left_out)
    write_json(run.path / "bench.json", _record(result))
    return result


def _networks(
    model: StagedModel, splits: Splits, budgets: Sequence[float], place: torch.device, workers: int
) -> tuple[list[Network], dict[Network, ExitPolicy], int]:
    """Full, early and static, the policies of the early ones, and the exit that the static one is cut at.

    There is no static one where no exit but the last is as accurate by itself.
    """
    from exitwise.workflows.train import collect

    costs = count_cost(model).macs
    calibration, test = (collect(model, split, place, workers) for split in (splits.calibration, splits.test))
    reachable = [budget for budget in sorted(budgets) if costs[0] <= budget * costs[-1] <= costs[-1]]
    if not reachable:
        raise UserError(
            f"expected a budget from {costs[0] / costs[-1]:.2f}, the first exit's, to 1; got {list(budgets)}"
        )
    accuracies = anytime(test)
    last = model.exits - 1
    full = Network("without exits", "full", accuracies[-1], count_alone(model, last))
    policies = {}
    for budget in reachable:
        policy, _ = calibrate_macs(calibration.confidences, costs, budget * costs[-1])
        point = operate(test, policy, costs)
        policies[Network(f"early exits, {100 * budget:.0f} %", "early", point.accuracy, point.macs)] = policy
    cut = _as_accurate(calibration, list(policies.values())[len(policies) // 2], costs)
    static = [Network(f"exit {cut + 1} alone", "static", accuracies[cut], count_alone(model, cut))]
    return [full, *policies, *(static if cut < last else [])], policies, cut


def _as_accurate(calibration: Outputs, policy: ExitPolicy, costs: Sequence[int]) -> int:
    """The first exit that alone is as accurate on the calibration images as the policy."""
    wanted = operate(calibration, policy, costs).accuracy
    return next((k for k, accuracy in enumerate(anytime(calibration)) if accuracy >= wanted), len(costs) - 1)


@contextmanager
def _form(
    form: FormName,
    run: Run,
    model: StagedModel,
    networks: Sequence[Network],
    policies: Mapping[Network, ExitPolicy],
    cut: int,
    place: torch.device,
) -> Iterator[Calls]:
    """What to call for each network in a form."""
    middle = list(policies)[len(policies) // 2]
    costs = count_cost(model).macs
    cuts = {n: cut if n.kind == "static" else model.exits - 1 for n in networks if n.kind != "early"}
    alone = {network: partial(model.forward_only, exit=exit) for network, exit in cuts.items()}
    calls: Calls
    if form == "onnx":
        from exitwise.deploy.formats.onnx import export_onnx, onnx_of_exit
        from exitwise.deploy.onnx_runner import OnnxRunner, open_session

        with tempfile.TemporaryDirectory() as folder:
            out, on_cpu = Path(folder) / "bundle", run.model("cpu")
            preprocessing = preprocessing_of(run.settings)
            export_onnx(
                on_cpu, policies[middle], out, classes=run.classes, preprocessing=preprocessing, exit_macs=costs
            )
            calls = {middle: OnnxRunner(out)}
        for network, exit in cuts.items():
            session = open_session(onnx_of_exit(on_cpu, exit))
            calls[network] = partial(_run_session, session)
    elif form == "compiled":
        check_compiler(place)
        calls = {network: compiled(function) for network, function in alone.items()}
        calls[middle] = EarlyExitRunner(model, policies[middle], costs, compile=True)
    else:
        calls = {**alone, **{n: EarlyExitRunner(model, policy, costs) for n, policy in policies.items()}}
    with torch.inference_mode():
        yield {network: calls[network] for network in networks if network in calls}


def _run_session(session: Any, images: Any) -> object:
    return session.run(None, {"images": images})


def _images(splits: Splits, count: int) -> Tensor:
    """Test images in random order, again from the start if there are too few."""
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))[:count]
    split = type(splits.test)(splits.test.source, splits.test.indices[order], splits.test.preprocessing)
    images = torch.cat([images for images, _ in split.batches(64)])
    return images[torch.arange(count) % len(images)]


def _batches(form: FormName, images: Tensor, batch_size: int, place: torch.device) -> list[Any]:
    batches = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    if form == "onnx":
        return [np.ascontiguousarray(batch.numpy()) for batch in batches]
    return [batch.to(place) for batch in batches]


def _measure(form: FormName, calls: Calls, batches: Sequence[Any], batch_size: int, seconds: float) -> list[Row]:
    for call in calls.values():
        call(batches[0])  # where something is compiled, it is now
    start = time.perf_counter()
    for call in calls.values():
        call(batches[0])
    once = time.perf_counter() - start
    affordable = int(seconds / REPEATS / max(once, 1e-9))
    some = [batches[i % len(batches)] for i in range(min(max(affordable, FEWEST_BATCHES), MOST_BATCHES))]
    functions = {network: partial(_next_of, call, iter([some[-1], *some * REPEATS])) for network, call in calls.items()}
    taken = interleaved_seconds(functions, REPEATS * len(some))
    rows = []
    for network, values in taken.items():
        mean = statistics.mean(statistics.median(values[i :: len(some)]) for i in range(len(some)))
        p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
        rows.append(Row(network, form, batch_size, mean, p50, p95, p99))
    return rows


def _next_of(call: Call, batches: Iterator[Any]) -> None:
    call(next(batches))


def _other(name: str, run: Run, place: torch.device) -> tuple[Network, Call]:
    """A static network to compare with, by run folder or name; it is timed on random images of its own size."""
    from exitwise.workflows.train import collect

    if (Path(name) / "config.yaml").is_file():
        other = Run(name)
        if other.classes != run.classes:
            raise UserError(f"expected a run with the classes of {run.path} at {name}; got {len(other.classes)} others")
        model = other.model(place)
        accuracy = anytime(collect(model, other.splits().test, place, other.settings.workers))[-1]
    elif Path(name).is_dir():
        raise UserError(f"expected a run folder with config.yaml at {name}, or a model's name; found neither")
    else:
        model, accuracy = create_model(name, num_classes=len(run.classes)).eval().to(place), None
    network = Network(name, "static", accuracy, count_alone(model, model.exits - 1))
    size = model.input_shape

    def call(images: Tensor) -> object:
        return model.forward_last(images if images.shape[1:] == size else images.new_zeros(len(images), *size))

    return network, call


def verdict(rows: Sequence[Row]) -> str:
    """Whether early exits are worth it, from the rows of one batch size; each network counts in its fastest form."""
    full, early = (min((r for r in rows if r.network.kind == kind), key=_mean) for kind in ("full", "early"))
    least = early.network.accuracy or 0
    as_accurate = [r for r in rows if r.network.kind == "static" and (r.network.accuracy or -1) >= least]
    gain, saved = full.mean / early.mean, 1 - early.mean / full.mean
    promised = 1 - (early.network.macs or 0) / (full.network.macs or 1)
    more = round(100 * (least - (full.network.accuracy or 0)), 1)
    what = f"{early.network.name} ({early.form}): {gain:.2f}x as fast as the network without exits ({full.form}), "
    what += f"{abs(more)} points of accuracy {'more' if more > 0 else 'less'}" if more else "as accurate"
    saves = f"{abs(100 * promised):.0f} % {'fewer' if promised >= 0 else 'more'} MACs and "
    saves += f"{abs(100 * saved):.0f} % {'less' if saved >= 0 else 'more'} time"
    if promised < 1 - 1 / WORTH:
        return f"not worth it: {what}; {saves}: too few images leave early"
    if gain < WORTH:
        return f"not worth it: {what}; {saves}: exits, small operators and smaller batches cost more than their MACs"
    static = min(as_accurate, key=_mean, default=None)
    if static is not None and static.mean <= early.mean:
        return (
            f"not worth it: {what}; but {static.network.name} ({static.form}) is as accurate and "
            f"{early.mean / static.mean:.2f}x as fast again"
        )
    return f"worth it: {what}; {saves}"


def _mean(row: Row) -> float:
    return row.mean


def _record(result: Bench) -> dict[str, Any]:
    return {
        "rows": [{**asdict(row), "network": row.network._asdict()} for row in result.rows],
        "verdicts": result.verdicts,
        "left_out": result.left_out,
        "machine": environment([]),
    }
