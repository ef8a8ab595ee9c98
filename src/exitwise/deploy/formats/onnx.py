"""ONNX: a graph per stage for batches, and one graph for single images in which an If skips what follows an exit.

Needs onnx and onnxscript (``pip install 'exitwise[onnx]'``).
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import MANIFEST, SINGLE, VERSION, seal, stage_file
from exitwise.deploy.formats.onnx_single import single_graph
from exitwise.deploy.monitor import Reference
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import ExportError, deepest_cause, describe, describe_file, flat_stages, new_folder
from exitwise.errors import UserError
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

OPSET = 18
CHECKED, TOLERANCE = 8, 1e-4
"""Images that an export is checked on, and by how much confidences may differ there."""


def export_onnx(
    model: StagedModel,
    policy: ExitPolicy,
    folder: str | Path,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    exit_macs: Sequence[int],
    name: str = "",
    reference: Reference | None = None,
    overwrite: bool = False,
) -> None:
    """Write a network and its exit policy as a folder that :class:`~exitwise.deploy.onnx_runner.OnnxRunner` runs.

    The folder is written under a temporary name, checked against the network on random images, and renamed.

    Args:
        model, policy: what to export.
        folder: where to.
        classes: names, in the order of the logits.
        preprocessing: of images.
        exit_macs: cost of leaving at each exit.
        name: of the network, for the record.
        reference: how the calibration images left, for monitoring.
        overwrite: whether an export that is there may be replaced.

    Raises:
        UserError: if something is there that must not be replaced, a library is missing, an operator has no ONNX form
            (names it), or what was written does otherwise than the network (:class:`ExportError`).
    """
    onnx = _library()
    with new_folder(Path(folder), overwrite) as temporary:
        with torch.no_grad(), evaluating(model):
            graphs = [
                _export(stage.graph, stage.tensors, stage.inputs, stage.outputs, k)
                for k, stage in enumerate(flat_stages(model, policy.measure))
            ]
        files = {stage_file(k): graph for k, graph in enumerate(graphs)}
        said = {
            "format": "exitwise-onnx",
            "version": VERSION,
            **describe(model, policy, classes, preprocessing, exit_macs, name, reference),
        }
        for file, graph in {**files, SINGLE: single_graph(onnx, graphs, policy.thresholds)}.items():
            onnx.helper.set_model_props(graph, seal(said, file))
            onnx.checker.check_model(graph)
            onnx.save(graph, temporary / file)
        manifest = {
            **said,
            "stages": [
                {
                    **describe_file(temporary / file),
                    "inputs": [info.name for info in graph.graph.input],
                    "outputs": [info.name for info in graph.graph.output],
                }
                for file, graph in files.items()
            ],
            "single": describe_file(temporary / SINGLE),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _check(model, policy, tuple(exit_macs), temporary)


def _library() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export needs onnx, onnxscript and onnxruntime: pip install 'exitwise[onnx]' ({error})"
        ) from error
    return onnx


class _One(nn.Module):
    """The network cut at one exit, without those before it."""

    def __init__(self, model: StagedModel, exit: int) -> None:
        super().__init__()
        self.model, self.exit = model, exit

    def forward(self, *images: Tensor) -> Tensor:
        return self.model.forward_only(images[0], self.exit)


def onnx_of_exit(model: StagedModel, exit: int) -> bytes:
    """Return an ONNX graph from images (B, channels, height, width) to the logits of one exit (0-based) alone.

    Raises:
        UserError: if a library is missing, or an operator has no ONNX form (:class:`ExportError`).
    """
    _library()
    parameter = next(model.parameters())
    images = torch.randn(2, *model.input_shape, device=parameter.device)
    with torch.no_grad(), evaluating(model):
        return _export(_One(model, exit), (images,), ["images"], ["logits"], exit).SerializeToString()


def _export(graph: nn.Module, tensors: tuple[Tensor, ...], inputs: list[str], outputs: list[str], k: int) -> Any:
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                tensors,
                dynamo=True,
                dynamic_shapes=(dynamic,),
                input_names=inputs,
                output_names=[f"{_OUT}{name}" for name in outputs],
                opset_version=OPSET,
                verbose=False,
                external_data=False,
            )
    except Exception as error:
        causes = [error, error.__cause__]
        text = " ".join(str(cause) for cause in causes if cause is not None)
        operator = re.search(r"\baten(?:\.|::)\w+", text)
        reason = f"operator {operator[0]} has no ONNX form here" if operator else deepest_cause(error)
        raise ExportError(f"stage {k + 1} cannot be exported to ONNX: {reason}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    return _named(program.model_proto, outputs)  # type: ignore[union-attr]


_OUT, _INNER = "out/", "inner/"


def _named(model: Any, outputs: Sequence[str]) -> Any:
    """Return a model whose outputs are called as they should be, and nothing else in it is.

    The exporter gives them names that its own may already have, such as that of an operator.
    """
    names = {**{name: f"{_INNER}{name}" for name in outputs}, **{f"{_OUT}{name}": name for name in outputs}}
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for info in [*graph.output, *graph.value_info, *graph.initializer]:
        info.name = names.get(info.name, info.name)
    return model


def _check(model: StagedModel, policy: ExitPolicy, exit_macs: tuple[int, ...], folder: Path) -> None:
    """Raise ExportError unless the files answer as the network does, images near a threshold aside."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECKED, *model.input_shape, generator=generator)
    runner = OnnxRunner(folder)
    wanted = EarlyExitRunner(model, policy, exit_macs)(images.to(parameter.device, parameter.dtype))
    for how, found in (("stages", runner(images.numpy())), ("If graph", runner.one_by_one(images.numpy()))):
        thresholds = torch.tensor([t if t is not None else 2.0 for t in policy.thresholds] + [0.0])
        at = wanted.exit.cpu()
        near = (wanted.confidence.cpu() - thresholds[at]).abs() < TOLERANCE
        same = torch.from_numpy(found.exit) == at
        close = (torch.from_numpy(found.confidence) - wanted.confidence.cpu()).abs() < TOLERANCE
        wrong = ~(same & close & (torch.from_numpy(found.prediction) == wanted.prediction.cpu())) & ~near
        if wrong.sum() > 1:  # one may lie near the threshold of another exit
            raise ExportError(
                f"the ONNX {how} does otherwise than the network on {int(wrong.sum())} of {CHECKED} random images; "
                "nothing was written"
            )
