"""ONNX: a graph per stage for batches, and one graph for single images in which an If skips what follows an exit.

Needs onnx and onnxscript (``pip install 'exitwise[onnx]'``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from exitwise.data.transforms import Preprocessing
from exitwise.errors import UserError
from exitwise.exiting.confidence import Confidence, Reading
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runtime import EarlyExitRunner
from exitwise.models.staged import Stage, StagedModel, evaluating
from exitwise.monitor import Reference
from exitwise.runtime import MANIFEST, SINGLE, VERSION, OnnxRunner
from exitwise.version import __version__

OPSET = 18
CHECKED, TOLERANCE = 8, 1e-4
"""Images that an export is checked on, and by how much confidences may differ there."""


class ExportError(UserError):
    """A network cannot be exported, or the export does not do what the network does."""


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
) -> None:
    """Write a network and its exit policy as a folder that :class:`~exitwise.runtime.OnnxRunner` runs.

    The folder is written under a temporary name, checked against the network on random images, and renamed.

    Args:
        model, policy: what to export.
        folder: where to; must not exist.
        classes: names, in the order of the logits.
        preprocessing: of images.
        exit_macs: cost of leaving at each exit.
        name: of the network, for the record.
        reference: how the calibration images left, for monitoring.

    Raises:
        UserError: if the folder exists, a library is missing, or an operator has no ONNX form (names it), or what was
            written does otherwise than the network (:class:`ExportError`).
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"expected nothing at {folder}; something is there")
    onnx = _library()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with torch.no_grad(), evaluating(model):
            graphs = _stage_graphs(model, policy.confidence)
        files = {f"stage_{k}.onnx": graph for k, graph in enumerate(graphs)}
        for file, graph in {**files, SINGLE: _single_graph(onnx, graphs, policy)}.items():
            onnx.checker.check_model(graph)
            onnx.save(graph, temporary / file)
        manifest = {
            "format": "exitwise-onnx",
            "version": VERSION,
            "exitwise": __version__,
            "model": name,
            "classes": list(classes),
            "num_classes": model.num_classes,
            "input_shape": list(model.input_shape),
            "preprocessing": {
                "image_size": preprocessing.image_size,
                "mean": list(preprocessing.mean),
                "std": list(preprocessing.std),
                "interpolation": preprocessing.interpolation,
                "shorter_side": preprocessing.shorter_side,
            },
            "thresholds": list(policy.thresholds),
            "measure": policy.confidence.measure,
            "temperatures": policy.confidence.temperatures,
            "exit_macs": list(exit_macs),
            "reference": reference and reference.to_dict(),
            "stages": [_describe(temporary / file, graph) for file, graph in files.items()],
            "single": {"file": SINGLE, "sha256": _sha256(temporary / SINGLE)},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _check(model, policy, tuple(exit_macs), temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    """An ONNX graph from images (B, channels, height, width) to the logits of one exit (0-based) alone.

    Raises:
        UserError: if a library is missing, or an operator has no ONNX form (:class:`ExportError`).
    """
    _library()
    parameter = next(model.parameters())
    images = torch.randn(2, *model.input_shape, device=parameter.device)
    with torch.no_grad(), evaluating(model):
        return _export(_One(model, exit), (images,), ["images"], ["logits"], exit).SerializeToString()


class _StageGraph(nn.Module):
    """A stage on a flat list of tensors, with the reading of its exit."""

    def __init__(self, stage: Stage, spec: TreeSpec, confidence: Confidence, exit: int, last: bool) -> None:
        super().__init__()
        self.stage, self.spec, self.confidence, self.exit, self.last = stage, spec, confidence, exit, last

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        before = None
        if self.confidence.needs_every_exit and self.exit > 0:
            *tensors, prediction, streak = tensors  # type: ignore[assignment]
            before = Reading(prediction, prediction, streak)
        state = self.stage.body(tree_unflatten(list(tensors), self.spec))
        reading = self.confidence.read(self.stage.head(state), self.exit, before)
        answer = [part for part in reading if part is not None]
        return (*answer, *([] if self.last else tree_flatten(state)[0]))


def _stage_graphs(model: StagedModel, confidence: Confidence) -> list[Any]:
    graphs = []
    parameter = next(model.parameters())
    state: Any = torch.randn(2, *model.input_shape, device=parameter.device)
    votes: list[Tensor] = []
    answers = ["confidence", "prediction", *(["streak"] if confidence.needs_every_exit else [])]
    for k, stage in enumerate(cast("list[Stage]", list(model.stages))):
        tensors, spec = tree_flatten(state)
        last = k == model.exits - 1
        graph = _StageGraph(stage, spec, confidence, k, last)
        inputs = [f"state_{i}" for i in range(len(tensors))]
        if votes:
            inputs += ["before_prediction", "before_streak"]
        outputs = [*answers]
        state = stage.body(state)
        if not last:
            outputs += [f"next_{i}" for i in range(len(tree_flatten(state)[0]))]
        graphs.append(_export(graph, (*tensors, *votes), inputs, outputs, k))
        if confidence.needs_every_exit:
            votes = [torch.zeros(2, dtype=torch.int64, device=parameter.device) for _ in range(2)]
    return graphs


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
                output_names=outputs,
                opset_version=OPSET,
                verbose=False,
                external_data=False,
            )
    except Exception as error:
        causes = [error, error.__cause__]
        text = " ".join(str(cause) for cause in causes if cause is not None)
        operator = re.search(r"\baten(?:\.|::)\w+", text)
        reason = f"operator {operator[0]} has no ONNX form here" if operator else _deepest(error)
        raise ExportError(f"stage {k + 1} cannot be exported to ONNX: {reason}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    return program.model_proto  # type: ignore[union-attr]


def _deepest(error: BaseException) -> str:
    """The first line of what an error was caused by in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _single_graph(onnx: Any, graphs: Sequence[Any], policy: ExitPolicy) -> Any:
    """All stages in one graph for a batch of one: what follows an exit lies in the else branch of an If."""
    helper, types = onnx.helper, onnx.TensorProto

    def constant(name: str, kind: int, value: float | int, shape: list[int]) -> Any:
        return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, [value]))

    def outputs(k: int) -> list[str]:
        return [f"at{k}/prediction", f"at{k}/exit", f"at{k}/confidence"]

    def answer(k: int) -> list[Any]:
        prediction, exit, confidence = outputs(k)
        return [
            helper.make_node("Identity", [f"s{k}/prediction"], [prediction]),
            constant(exit, types.INT64, k, [1]),
            helper.make_node("Identity", [f"s{k}/confidence"], [confidence]),
        ]

    def infos(names: list[str]) -> list[Any]:
        kinds = [types.INT64, types.INT64, types.FLOAT]
        return [helper.make_tensor_value_info(name, kind, [1]) for name, kind in zip(names, kinds, strict=True)]

    def from_stage(k: int) -> tuple[list[Any], list[Any], list[str]]:
        """Nodes and initializers of stage k and all that follows, and the names of their answer."""
        stage = onnx.compose.add_prefix_graph(graphs[k].graph, f"s{k}/")
        feeds = {"before_prediction": "prediction", "before_streak": "streak"}
        joins = []
        for info in stage.input:
            name = info.name.removeprefix(f"s{k}/")
            if k == 0:
                continue
            source = feeds.get(name, name.replace("state_", "next_"))
            joins.append(helper.make_node("Identity", [f"s{k - 1}/{source}"], [info.name]))
        nodes, constants = [*joins, *stage.node], list(stage.initializer)
        if k == len(graphs) - 1:
            return [*nodes, *answer(k)], constants, outputs(k)
        then_nodes, then_constants, then = from_stage(k + 1)
        threshold = policy.thresholds[k]
        if threshold is None:
            return [*nodes, *then_nodes], [*constants, *then_constants], then
        chosen = [f"if{k}/{name}" for name in ("prediction", "exit", "confidence")]
        leaves = [
            constant(f"s{k}/threshold", types.FLOAT, threshold, [1]),
            helper.make_node("GreaterOrEqual", [f"s{k}/confidence", f"s{k}/threshold"], [f"s{k}/leaves"]),
        ]
        branches = {
            "then_branch": helper.make_graph(answer(k), f"leave{k}", [], infos(outputs(k))),
            "else_branch": helper.make_graph(then_nodes, f"stay{k}", [], infos(then), then_constants),
        }
        choice = helper.make_node("If", [f"s{k}/leaves"], chosen, **branches)
        return [*nodes, *leaves, choice], constants, chosen

    nodes, constants, names = from_stage(0)
    final = ["prediction", "exit", "confidence"]
    nodes += [helper.make_node("Identity", [name], [last]) for name, last in zip(names, final, strict=True)]
    image = onnx.compose.add_prefix_graph(graphs[0].graph, "s0/").input[0]
    image.type.tensor_type.shape.dim[0].Clear()
    image.type.tensor_type.shape.dim[0].dim_value = 1
    graph = helper.make_graph(nodes, "early_exit", [image], infos(final), constants)
    opsets = {entry.domain: entry.version for model in graphs for entry in model.opset_import}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=graphs[0].ir_version)


def _describe(path: Path, graph: Any) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": _sha256(path),
        "inputs": [info.name for info in graph.graph.input],
        "outputs": [info.name for info in graph.graph.output],
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
