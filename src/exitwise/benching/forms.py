"""Networks in the forms that they are deployed in, as functions to be timed."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch.utils._pytree import tree_map

from exitwise.benching.networks import Call, Calls, Subject, rows_of
from exitwise.benching.timing import interleaved_seconds
from exitwise.deploy.calibration import Calibration
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Thresholds
from exitwise.exiting.runner import EarlyExitRunner, compiled
from exitwise.kernels.inputs import Inputs, moved, samples_in
from exitwise.models import count_cost
from exitwise.runs.records.bench import FormName, Row
from exitwise.training.compiled import check_compiler

if TYPE_CHECKING:
    from exitwise.deploy.onnx_runner import OnnxRunner

FORMS: tuple[FormName, ...] = get_args(FormName)
REPEATS = 3
"""Times that each batch is run: their median counts."""

MOST_BATCHES, FEWEST_BATCHES = 64, 4


@contextmanager
def in_form(form: FormName, subject: Subject) -> Iterator[Calls]:
    """What to call for each network in a form: the full one, those that leave early, those cut at an exit."""
    make = {"onnx": _onnx, "compiled": _compiled, "eager": _eager}[form]
    calls = make(subject)
    order = sorted(calls, key=lambda network: ("full", "early", "static").index(network.kind))
    with torch.inference_mode():
        yield {network: calls[network] for network in order}


def _eager(subject: Subject) -> Calls:
    alone = {network: partial(subject.model.forward_only, exit=exit) for network, exit in subject.alone.items()}
    runner = EarlyExitRunner(subject.model, next(iter(subject.early.values())))
    return {**alone, **{network: partial(_under, runner, policy) for network, policy in subject.early.items()}}


def _compiled(subject: Subject) -> Calls:
    check_compiler(next(subject.model.parameters()).device)
    alone = {
        network: compiled(partial(subject.model.forward_only, exit=exit)) for network, exit in subject.alone.items()
    }
    runner = EarlyExitRunner(subject.model, next(iter(subject.early.values())), compile=True)
    return {**alone, **{network: partial(_under, runner, policy) for network, policy in subject.early.items()}}


def _under(runner: EarlyExitRunner, policy: ExitPolicy, inputs: Any) -> object:
    runner.policy = policy
    return runner(inputs)


def _onnx(subject: Subject) -> Calls:
    from exitwise.deploy.formats.onnx import export_onnx, onnx_of_exit
    from exitwise.deploy.onnx_runner import OnnxRunner
    from exitwise.deploy.sessions import open_session

    model = copy.deepcopy(subject.model).cpu()
    calibration = Calibration.of(next(iter(subject.early.values())), count_cost(model).macs)
    classes = [str(label) for label in range(model.num_classes)]
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, calibration, Path(folder) / "bundle", classes=classes, preprocessing=None)
        runner = OnnxRunner(Path(folder) / "bundle")
    calls: Calls = {network: partial(_within, runner, policy.thresholds) for network, policy in subject.early.items()}
    for network, exit in subject.alone.items():
        calls[network] = partial(_run_session, open_session(onnx_of_exit(model, exit)))
    return calls


def _within(runner: OnnxRunner, thresholds: Thresholds, inputs: Any) -> object:
    runner.thresholds = thresholds
    return runner(inputs)


def _run_session(session: Any, inputs: Any) -> object:
    named = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    return session.run(None, named)


def batches_of(form: FormName, inputs: Inputs, batch_size: int, place: torch.device) -> list[Any]:
    """Return the samples in batches of a size, as a form takes them; what is left over is left out."""
    whole = torch.arange(samples_in(inputs)).split(batch_size)
    batches = [rows_of(inputs, index) for index in whole if len(index) == batch_size]
    if form == "onnx":
        return [tree_map(lambda part: np.ascontiguousarray(part.numpy()), batch) for batch in batches]
    return [moved(batch, place) for batch in batches]


def measure(form: FormName, calls: Calls, batches: Sequence[Any], batch_size: int, seconds: float) -> list[Row]:
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
