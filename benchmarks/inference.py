"""What early exits of MSDNet-5 save in time at half the MACs: eager, compiled, and by ONNX Runtime.

    python benchmarks/inference.py --check --json results/inference.json

32x32 images, one by one and in batches of 64; the network is trained on nothing, and thresholds are set so that images
leave as a budget of half the MACs has it. Saving is 1 - cost / cost of the full network in the same form and batch
size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import eager
from common import Bar, finish, parser
from savings import Form, measure_savings
from torch import Tensor, nn

from exitwise import EarlyExitRunner, ExitPolicy, calibrate_macs, collect_outputs, count_cost, create_model
from exitwise.data import Preprocessing
from exitwise.export.onnx import OPSET, export_onnx
from exitwise.models.staged import StagedModel
from exitwise.runtime import OnnxRunner

IMAGES = {1: 64, 64: 256}
"""Images in the stream, by batch size."""


def compiled(model: StagedModel, policy: ExitPolicy, batches: list[Tensor], exit_macs: tuple[int, ...]) -> Form:
    """Each stage by torch.compile; the full network by torch.compile as a whole."""
    plain = eager(model, policy, batches, exit_macs)
    runner = EarlyExitRunner(model, policy, exit_macs, compile=True)

    def step(k: int) -> Callable[[Any], object]:
        body, head = runner._parts[k]
        return (lambda state: head(body(state))) if policy.can_leave(k) else body

    return Form(
        torch.compile(model.forward_last, dynamic=True), runner, [step(k) for k in range(model.exits)], plain.inputs
    )


class LastOnly(nn.Module):
    """The network without its early exits."""

    def __init__(self, model: StagedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_last(images)


def onnx(model: StagedModel, policy: ExitPolicy, batches: list[Any], exit_macs: tuple[int, ...]) -> Form:
    """Stage by stage, and whole, by ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        bundle, whole = Path(folder) / "bundle", Path(folder) / "whole.onnx"
        preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
        classes = [str(k) for k in range(model.num_classes)]
        export_onnx(model, policy, bundle, classes=classes, preprocessing=preprocessing, exit_macs=exit_macs)
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        example = torch.randn(2, *model.input_shape)
        program = torch.onnx.export(
            LastOnly(model).eval(), (example,), dynamo=True, dynamic_shapes=dynamic, opset_version=OPSET, verbose=False
        )
        program.save(whole)
        session = onnxruntime.InferenceSession(whole)
        runner = OnnxRunner(bundle)
    name = session.get_inputs()[0].name
    inputs: list[list[dict[str, Any]]] = [[{"state_0": batch} for batch in batches]]
    for stage, part in zip(runner._stages, runner._sessions, strict=True):
        wanted = [output for output in stage["outputs"] if output.startswith("next_")]
        inputs.append(
            [
                {
                    key.replace("next_", "state_"): value
                    for key, value in zip(wanted, part.run(wanted, feed), strict=True)
                }
                if wanted
                else {}
                for feed in inputs[-1]
            ]
        )
    steps = [lambda feed, part=part: part.run(None, feed) for part in runner._sessions]
    return Form(lambda batch: session.run(None, {name: batch}), runner, steps, inputs)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5, help="times that each batch is run")
    arguments.add_argument("--forms", nargs="*", default=["eager", "compiled", "onnx"])
    options = arguments.parse_args()
    torch.manual_seed(0)
    model = create_model("msdnet_cifar_5").eval()
    with torch.no_grad():  # statistics of some images, so that confidences differ
        model.train()(torch.randn(256, 3, 32, 32))
        model.eval()
    costs = count_cost(model).macs
    results, bars = {}, []
    columns = ("full ms", "early ms", "saved", "stages", "MACs", "of stages", "of MACs")
    print(f"{'':10}{'batch':>6}" + "".join(f"{column:>10}" for column in columns))
    for batch_size, bar in ((1, 0.95), (64, 0.9)):
        images = torch.randn(IMAGES[batch_size], 3, 32, 32)
        targets = torch.zeros(len(images), dtype=torch.int64)
        policy, _ = calibrate_macs(collect_outputs(model, [(images, targets)]).confidences, costs, 0.5 * costs[-1])
        tensors = list(images.split(batch_size))
        arrays = [np.ascontiguousarray(batch.numpy()) for batch in tensors]
        forms: dict[str, Form] = {}
        with torch.inference_mode():
            if "eager" in options.forms:
                forms["eager"] = eager(model, policy, tensors, costs)
            if "compiled" in options.forms:
                forms["compiled"] = compiled(model, policy, tensors, costs)
        if "onnx" in options.forms:
            forms["onnx"] = onnx(model, policy, arrays, costs)
        batches = {name: arrays if name == "onnx" else tensors for name in forms}
        with torch.inference_mode():
            # One form after the other: idle threads of one runtime would take the cores from the other.
            rounds = options.rounds * len(tensors)
            savings = {
                name: measure_savings({name: form}, batches, costs, rounds)[name] for name, form in forms.items()
            }
        for name, saving in savings.items():
            of_stages, of_macs = saving.measured / saving.by_stages, saving.measured / saving.by_macs
            row = [1000 * saving.full, 1000 * saving.early, *saving[2:], of_stages, of_macs]
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
