"""What early exits of MSDNet-5 save in time at half the MACs: eager, compiled, and by ONNX Runtime.

    python benchmarks/inference.py --check --json results/inference.json

32x32 images, one by one and in batches of 64; the network is trained on nothing, and thresholds are set so that images
leave as a budget of half the MACs has it. Saving is 1 - cost / cost of the full network in the same form and batch
size; the full network has all its exits, as budgets count it. What it costs without its early exits, a fifth of the
MACs less, is the column "plain".
"""

from __future__ import annotations

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
from exitwise.export.onnx import OPSET, export_onnx
from exitwise.models.staged import StagedModel
from exitwise.runtime import OnnxRunner

IMAGES = {1: 64, 64: 256}
"""Images in the stream, by batch size."""


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
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        opened = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
        name = opened.get_inputs()[0].name
        return lambda batch: opened.run(None, {name: batch})

    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
        classes = [str(k) for k in range(model.num_classes)]
        export_onnx(model, policy, bundle, classes=classes, preprocessing=preprocessing, exit_macs=exit_macs)
        runner = OnnxRunner(bundle)
    calls: list[tuple[int, Any]] = []
    sessions, runner._sessions = (
        runner._sessions,
        [SimpleNamespace(run=recorded(part.run, calls, k, at=1)) for k, part in enumerate(runner._sessions)],
    )
    for batch in batches:
        runner.by_stages(batch)
    runner._sessions = sessions
    steps = [lambda feed, part=part: part.run(None, feed) for part in sessions]
    return Form(session(False), session(True), runner, steps), calls


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="times that the images are run")
    arguments.add_argument("--forms", nargs="*", default=["eager", "compiled", "onnx"])
    options = arguments.parse_args()
    torch.manual_seed(0)
    model = create_model("msdnet_cifar_5").eval()
    with torch.no_grad():  # statistics of some images, so that confidences differ
        model.train()(torch.randn(256, 3, 32, 32))
        model.eval()
    costs = count_cost(model).macs
    results, bars = {}, []
    columns = ("full ms", "plain ms", "early ms", "saved", "stages", "MACs", "of stages", "of MACs")
    print(f"{'':10}{'batch':>6}" + "".join(f"{column:>10}" for column in columns))
    for batch_size, bar in ((1, 0.95), (64, 0.9)):
        images = torch.randn(IMAGES[batch_size], 3, 32, 32)
        targets = torch.zeros(len(images), dtype=torch.int64)
        policy, _ = calibrate_macs(collect_outputs(model, [(images, targets)]).confidences, costs, 0.5 * costs[-1])
        tensors = list(images.split(batch_size))
        arrays = [np.ascontiguousarray(batch.numpy()) for batch in tensors]
        savings = {}
        with torch.inference_mode():
            calls = stage_calls(model, policy, tensors)
            if "eager" in options.forms:
                form = eager(model, policy, costs)
                savings["eager"] = measure_savings(form, tensors, calls, costs, options.rounds)
            if "compiled" in options.forms:
                form = compiled(model, policy, costs)
                savings["compiled"] = measure_savings(form, tensors, calls, costs, options.rounds)
        if "onnx" in options.forms:
            form, calls = onnx(model, policy, arrays, costs)
            savings["onnx"] = measure_savings(form, arrays, calls, costs, options.rounds)
        for name, saving in savings.items():
            of_stages, of_macs = saving.measured / saving.by_stages, saving.measured / saving.by_macs
            row = [*(1000 * seconds for seconds in saving[:3]), *saving[3:], of_stages, of_macs]
            results[f"{name}, batch {batch_size}"] = dict(zip(columns, row, strict=True))
            print(f"{name:10}{batch_size:6}" + "".join(f"{value:10.3f}" for value in row), flush=True)
        if "eager" in savings:
            routing = savings["eager"].measured / savings["eager"].by_stages
            bars.append(Bar(f"batch {batch_size}: eager, measured / by stages", routing, bar, at_most=False))
        fastest = min(savings, key=lambda name: savings[name].early)
        gets = savings[fastest].measured / savings[fastest].by_macs
        bars.append(Bar(f"batch {batch_size}: {fastest} (the fastest), measured / by MACs", gets, 0.9, at_most=False))
        if {"eager", "onnx"} <= set(savings):
            ratio = savings["eager"].early / savings["onnx"].early
            bars.append(Bar(f"batch {batch_size}: eager / ONNX stages, time", ratio, 1.0, at_most=False))
    finish(options, {"rounds": options.rounds, "rows": results}, bars)


if __name__ == "__main__":
    main()
