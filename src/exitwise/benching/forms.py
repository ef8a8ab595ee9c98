"""Networks in the forms that they are deployed in, as functions to be timed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from exitwise.benching.networks import Call, Calls
from exitwise.benching.timing import interleaved_seconds
from exitwise.data import Splits
from exitwise.deploy.calibration import Calibration
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner, compiled
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.runs.build import preprocessing_of
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import FormName, Network, Row
from exitwise.training.compiled import check_compiler

FORMS: tuple[FormName, ...] = get_args(FormName)
REPEATS = 3
"""Times that each batch is run: their median counts."""

MOST_BATCHES, FEWEST_BATCHES = 64, 4


@contextmanager
def in_form(
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
        from exitwise.deploy.onnx_runner import OnnxRunner
        from exitwise.deploy.sessions import open_session

        with tempfile.TemporaryDirectory() as folder:
            out, on_cpu = Path(folder) / "bundle", run.model("cpu")
            preprocessing = preprocessing_of(run.settings)
            calibration = Calibration.of(policies[middle], costs)
            export_onnx(on_cpu, calibration, out, classes=run.classes, preprocessing=preprocessing)
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


def test_images(splits: Splits, count: int) -> Tensor:
    """Test images in random order, again from the start if there are too few."""
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))[:count]
    split = type(splits.test)(splits.test.source, splits.test.indices[order], splits.test.preprocessing)
    images = torch.cat([images for images, _ in split.batches(64)])
    return images[torch.arange(count) % len(images)]


def batches_of(form: FormName, images: Tensor, batch_size: int, place: torch.device) -> list[Any]:
    batches = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    if form == "onnx":
        return [np.ascontiguousarray(batch.numpy()) for batch in batches]
    return [batch.to(place) for batch in batches]


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
