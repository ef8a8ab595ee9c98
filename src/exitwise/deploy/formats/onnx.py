"""ONNX: a graph per stage for batches, and one graph for single samples in which an If skips what follows an exit.

Needs onnx and onnxscript (``pip install 'exitwise[train]'``).
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exitwise.catalogue.extras import needing_extras
from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import SINGLE, seal, stage_file, write_sealed
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.onnx_functions import list_once
from exitwise.deploy.formats.onnx_single import reading_names, single_graph
from exitwise.deploy.formats.onnx_weights import WeightFiles
from exitwise.deploy.manifest import MANIFEST, VERSION
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.sessions import LEAST
from exitwise.deploy.stages import (
    BATCH,
    TOKENS,
    ExportError,
    deepest_cause,
    describe,
    describe_file,
    flat_stages,
    input_names,
    new_folder,
)
from exitwise.deploy.texts import Texts
from exitwise.exiting.measures import Measure, State
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.kernels.inputs import Inputs, has_tokens, is_tokens, named, shortened, varied
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel
from exitwise.storage.files import write_json

OPSET = 18
CHECKED, TOLERANCE = 8, 1e-4
"""Inputs that an export is checked on, and by how much confidences may differ there."""


def export_onnx(
    model: StagedModel,
    calibration: Calibration,
    folder: str | Path,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing | Texts | None,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Write a network and its calibration as a folder that :class:`~exitwise.deploy.onnx_runner.OnnxRunner` runs.

    The folder is written under a temporary name, checked against the network on random images, and renamed. A graph for
    single samples is among its files if there is more than one exit, and if what the measure does has an ONNX form.

    Args:
        model, calibration: what to export.
        folder: where to.
        classes: names, in the order of the logits.
        preprocessing: of images or texts; None: the bundle takes tensors.
        name: of the network, for the record.
        overwrite: whether an export that is there may be replaced.

    Raises:
        UserError: if something is there that must not be replaced, a library is missing, an operator has no ONNX form
            (names it), or what was written does otherwise than the network (:class:`ExportError`).
    """
    library()
    with new_folder(Path(folder), overwrite) as temporary:
        weights = WeightFiles(temporary)
        with torch.no_grad(), evaluating(model):
            graphs = []
            for k, stage in enumerate(flat_stages(model)):
                graph = _export(stage.graph, stage.tensors, stage.inputs, stage.outputs, f"stage {k + 1}", stage.axes)
                graphs.append(weights.move_out(graph, f"stage_{k}.data"))
        said = describe(model, calibration, classes, preprocessing, name, temporary)
        write_bundle(temporary, graphs, weights.files, said, calibration)
        _check(model, calibration, temporary)


def write_bundle(
    folder: Path, graphs: Sequence[Any], data: Sequence[Path], said: dict[str, Any], calibration: Calibration
) -> None:
    """Write the graphs of all stages, one for single samples, the manifest and the calibration.

    Args:
        folder: where to; its data files are there already.
        graphs: of the stages, ModelProtos whose weights lie in ``data``.
        data: files.
        said: of the network (:func:`~exitwise.deploy.stages.describe`).
        calibration: what the runner decides by.
    """
    onnx = library()
    said = {"format": "exitwise-onnx", "version": VERSION, "onnxruntime": LEAST, **said}
    files = {stage_file(k): graph for k, graph in enumerate(graphs)}
    measure = calibration.policy.measure
    reading = _reading(measure, len(graphs), said["num_classes"]) if len(graphs) > 1 else None
    if reading is not None:
        files[SINGLE] = single_graph(onnx, graphs, reading)
    entries = {}
    for file, graph in files.items():
        onnx.helper.set_model_props(graph, seal(said, file))
        onnx.save(graph, folder / file)
        onnx.checker.check_model(folder / file)
        names = {"inputs": [each.name for each in graph.graph.input], "outputs": [e.name for e in graph.graph.output]}
        entries[file] = {**describe_file(folder / file), **names}
    manifest = {
        **said,
        "stages": [entries[stage_file(k)] for k in range(len(graphs))],
        "single": {**entries[SINGLE], **measure.to_json()} if reading is not None else None,
        "data": [describe_file(path) for path in data],
    }
    write_json(folder / MANIFEST, manifest)
    write_sealed(folder, manifest, calibration)


class _Reader(nn.Module):
    """What a measure reads at all exits, for a batch of one."""

    def __init__(self, measure: Measure) -> None:
        super().__init__()
        self.measure = measure

    def forward(self, *logits: Tensor) -> tuple[Tensor, ...]:
        carried: State = None
        found: list[Tensor] = []
        for exit, each in enumerate(logits):
            confidence, prediction, carried, mixed = self.measure.read(each, exit, carried)
            found += [confidence, prediction, *([] if mixed is None else [mixed])]
        return tuple(found)


def _reading(measure: Measure, exits: int, classes: int) -> Any | None:
    """Return the ONNX model of what a measure reads; None if it has no ONNX form."""
    import onnx_ir as ir

    logits = tuple(torch.randn(1, classes) for _ in range(exits))
    inputs, outputs = reading_names(exits, measure.mixes(logits[0]))
    try:
        return ir.to_proto(_export(_Reader(measure), logits, inputs, outputs, "the measure"))
    except ExportError:
        return None


def library() -> Any:
    """Return onnx.

    Raises:
        UserError: if it is missing, or what goes with it.
    """
    with needing_extras("an export to ONNX"):
        import onnx
        import onnx.checker
        import onnxscript  # noqa: F401
    return onnx


class _One(nn.Module):
    """The network cut at one exit, without those before it."""

    def __init__(self, model: StagedModel, exit: int) -> None:
        super().__init__()
        self.model, self.exit = model, exit

    def forward(self, *tensors: Tensor) -> Tensor:
        example = self.model.example
        inputs = dict(zip(example, tensors, strict=True)) if isinstance(example, dict) else tensors[0]
        return self.model.forward_only(inputs, self.exit)


def onnx_of_exit(model: StagedModel, exit: int) -> bytes:
    """Return an ONNX graph from a network's inputs to the logits of one exit (0-based) alone.

    Raises:
        UserError: if a library is missing, or an operator has no ONNX form (:class:`ExportError`).
    """
    library()
    import onnx_ir as ir

    tensors = tuple(named(varied(model.example, 2, next(model.parameters()))).values())
    axes = [{0: BATCH, **({1: TOKENS} if is_tokens(each) else {})} for each in tensors]
    with torch.no_grad(), evaluating(model):
        graph = _export(_One(model, exit), tensors, input_names(model), ["logits"], f"exit {exit + 1}", axes)
    return ir.to_proto(graph).SerializeToString()


def _export(
    graph: nn.Module,
    tensors: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    what: str,
    axes: Sequence[Mapping[int, str]] = (),
) -> Any:
    """Return an ``onnx_ir`` model; ``axes``: those of its inputs that are free, by name."""
    free = torch.export.Dim.DYNAMIC
    dynamic = (tuple(dict.fromkeys(each, free) for each in axes),) if axes else None
    list_once()
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                tensors,
                dynamo=True,
                dynamic_shapes=dynamic,
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
        raise ExportError(f"{what} cannot be exported to ONNX: {reason}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    return _named(program.model, outputs)  # type: ignore[union-attr]


_OUT, _INNER = "out/", "inner/"


def _named(model: Any, outputs: Sequence[str]) -> Any:
    """Return a model whose outputs are called as they should be, and nothing else in it is.

    The exporter gives them names that its own may already have, such as that of an operator.
    """
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name in outputs:
            value.name = f"{_INNER}{value.name}"
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    return model


def _check(model: StagedModel, calibration: Calibration, folder: Path) -> None:
    """Raise ExportError unless the files answer as the network does, images near a threshold aside."""
    parameter = next(model.parameters())
    runner = OnnxRunner(folder)
    policy = calibration.policy
    run = EarlyExitRunner(model, policy, calibration.exit_macs)
    inputs = varied(model.example, CHECKED, parameter)
    for batch in (inputs, *([shortened(inputs)] if has_tokens(inputs) else [])):
        _check_batch(model, policy, runner, run, batch)


def _check_batch(
    model: StagedModel, policy: ExitPolicy, runner: OnnxRunner, run: EarlyExitRunner, inputs: Inputs
) -> None:
    given = {name: t.cpu().numpy() for name, t in zip(input_names(model), named(inputs).values(), strict=True)}
    wanted = [part.cpu().numpy() for part in run(inputs)[:3]]
    thresholds = np.array([2.0 if t is None else t for t in policy.thresholds] + [0.0])
    near = np.abs(wanted[2] - thresholds[wanted[1]]) < TOLERANCE
    forms = {"stages": runner.by_stages} | ({"If graph": runner.one_by_one} if runner.has_single else {})
    for how, form in forms.items():
        found = form(given)
        close = np.abs(found.confidence - wanted[2]) < TOLERANCE
        wrong = ~((found.exit == wanted[1]) & close & (found.prediction == wanted[0])) & ~near
        if wrong.sum() > 1:  # one may lie near the threshold of another exit
            raise ExportError(
                f"the ONNX {how} does otherwise than the network on {int(wrong.sum())} of {CHECKED} random inputs; "
                "nothing was written"
            )
