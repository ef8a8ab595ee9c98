"""What early exits of MSDNet-5 save in time at half the MACs: eager, compiled, and by ONNX Runtime.

    python benchmarks/inference.py --check --json results/inference.json

32x32 images, one by one and in batches of 64; the network is trained on nothing, and thresholds are set so that images
leave as a budget of half the MACs has it. Saving is 1 - cost / cost of the full network in the same form and batch
size; the full network has all its exits, as budgets count it. What it costs without its early exits, a fifth of the
MACs less, is the column "plain". Each form has a process of its own, as it would where it is deployed: threads and
memory of another one cost it a tenth and more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from backbones import eager, stage_calls
from common import Bar, finish, parser
from savings import Form, measure_savings, recorded
from torch import Tensor, nn

from exitwise import EarlyExitRunner, ExitPolicy, calibrate_macs, collect_outputs, count_cost, create_model
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.onnx import OPSET, export_onnx
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.models.staged import StagedModel

IMAGES = {1: 64, 64: 256}
"""Images in the stream, by batch size."""
BARS = {1: 0.95, 64: 0.9}
FORMS = ["eager", "compiled", "onnx"]
COLUMNS = ("full ms", "plain ms", "early ms", "saved", "stages", "MACs", "of stages", "of MACs")


def compiled(model: StagedModel, policy: ExitPolicy, exit_macs: tuple[int, ...]) -> Form:
    """Each stage by torch.compile; the full network by torch.compile as a whole."""
    runner = EarlyExitRunner(model, policy, exit_macs, compile=True)

    def step(k: int) -> Callable[[Any], object]:
        body, head = runner._parts[k]
        return (lambda state: head(body(state))) if policy.can_leave(k) else body

    full, plain = torch.compile(model, dynamic=True), torch.compile(model.forward_last, dynamic=True)
    return Form(full, plain, runner, [step(k) for k in range(model.exits)])


class Whole(nn.Module):
    """The network with all its exits, or without its early ones."""

    def __init__(self, model: StagedModel, last_only: bool) -> None:
        super().__init__()
        self.model, self.last_only = model, last_only

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model.forward_last(images),) if self.last_only else tuple(self.model(images))


def onnx(
    model: StagedModel, policy: ExitPolicy, batches: list[Any], exit_macs: tuple[int, ...]
) -> tuple[Form, list[tuple[int, Any]]]:
    """By ONNX Runtime, and what reaches each stage. One image goes through the graph with nested If."""
    import onnxruntime

    def session(last_only: bool) -> Callable[[Any], object]:
        program = torch.onnx.export(
            Whole(model, last_only).eval(),
            (torch.randn(2, *model.input_shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            verbose=False,
            external_data=False,
        )
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        opened = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
        name = opened.get_inputs()[0].name
        return lambda batch: opened.run(None, {name: batch})

    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
        classes = [str(k) for k in range(model.num_classes)]
        export_onnx(model, Calibration.of(policy, exit_macs), bundle, classes=classes, preprocessing=preprocessing)
        runner = OnnxRunner(bundle)
    calls: list[tuple[int, Any]] = []
    sessions, runner.chain.sessions = (
        runner.chain.sessions,
        [SimpleNamespace(run=recorded(part.run, calls, k, at=1)) for k, part in enumerate(runner.chain.sessions)],
    )
    for batch in batches:
        runner.by_stages(batch)
    runner.chain.sessions = sessions
    steps = [lambda feed, part=part: part.run(None, feed) for part in sessions]
    return Form(session(False), session(True), runner, steps), calls


def rows_of(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """What one form saves at each batch size."""
    torch.manual_seed(0)
    model = create_model("msdnet_cifar_5").eval()
    with torch.no_grad():  # statistics of some images, so that confidences differ
        model.train()(torch.randn(256, 3, 32, 32))
        model.eval()
    costs = count_cost(model).macs
    rows = {}
    for batch_size in IMAGES:
        images = torch.randn(IMAGES[batch_size], 3, 32, 32)
        targets = torch.zeros(len(images), dtype=torch.int64)
        policy, _ = calibrate_macs(collect_outputs(model, [(images, targets)]).confidences, costs, 0.5 * costs[-1])
        batches: list[Any] = list(images.split(batch_size))
        with torch.inference_mode():
            calls = stage_calls(model, policy, batches)
        if name == "onnx":
            batches = [np.ascontiguousarray(batch.numpy()) for batch in batches]
            form, calls = onnx(model, policy, batches, costs)
        else:
            form = {"eager": eager, "compiled": compiled}[name](model, policy, costs)
        with torch.inference_mode():
            saving = measure_savings(form, batches, calls, costs, rounds)
        parts = saving.measured / saving.by_stages, saving.measured / saving.by_macs
        figures = [*(1000 * seconds for seconds in saving[:3]), *saving[3:], *parts]
        rows[f"{name}, batch {batch_size}"] = dict(zip(COLUMNS, figures, strict=True))
    return rows


def in_a_process(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """:func:`rows_of` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--rounds", str(rounds), "--forms", name, "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["figures"]["rows"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="times that the images are run")
    arguments.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    options = arguments.parse_args()
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':20}" + "".join(f"{column:>10}" for column in COLUMNS))
    for name in options.forms:
        measure = rows_of if len(options.forms) == 1 else in_a_process
        measured = measure(name, options.rounds)
        rows |= measured
        for form, row in measured.items():
            print(f"{form:20}" + "".join(f"{value:10.3f}" for value in row.values()), flush=True)
    bars = []
    for batch_size, bar in BARS.items():
        size = f"batch {batch_size}"
        at = {name: rows[f"{name}, {size}"] for name in options.forms}
        if "eager" in at:
            bars.append(Bar(f"{size}: eager, measured / by stages", at["eager"]["of stages"], bar, at_most=False))
        fastest = min(at, key=lambda name: at[name]["early ms"])
        gets = at[fastest]["of MACs"]
        bars.append(Bar(f"{size}: {fastest} (the fastest), measured / by MACs", gets, 0.9, at_most=False))
        if {"eager", "onnx"} <= set(at):
            ratio = at["eager"]["early ms"] / at["onnx"]["early ms"]
            bars.append(Bar(f"{size}: eager / ONNX stages, time", ratio, 1.0, at_most=False))
    finish(options, {"rounds": options.rounds, "rows": rows}, bars)


if __name__ == "__main__":
    main()
