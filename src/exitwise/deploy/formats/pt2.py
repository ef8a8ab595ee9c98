"""torch.export: a program per stage, for AOTInductor, ExecuTorch and what else takes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import write_sealed
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.manifest import MANIFEST
from exitwise.deploy.names import source_of
from exitwise.deploy.stages import (
    ExportError,
    FlatStage,
    deepest_cause,
    describe,
    describe_file,
    flat_stages,
    new_folder,
)
from exitwise.deploy.texts import Texts
from exitwise.kernels.inputs import Inputs, named, varied
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel
from exitwise.storage.files import write_json

VERSION, CHECKED, TOLERANCE = 2, 5, 1e-4
"""Of the manifest; images that a program is checked on, and by how much its outputs may differ there."""


def export_programs(
    model: StagedModel,
    calibration: Calibration,
    folder: str | Path,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing | Texts | None,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Write each stage as ``stage_K.pt2``, its batch dimension free, with a manifest of inputs and outputs, and the
    calibration.

    A stage takes the state that the one before hands on, and gives the logits of its exit and the next state; reading
    confidence from them, comparing it with the threshold and dropping what leaves is the caller's. Programs are
    checked against the network, at another batch size than they were made with, before the folder is there. Load them
    with ``torch.export.load`` only if you trust them: it unpickles.

    Args:
        model, calibration, folder, classes, preprocessing, name, overwrite: see
            :func:`~exitwise.deploy.formats.onnx.export_onnx`.

    Raises:
        UserError: if something is there that must not be replaced, or a stage cannot be exported or does otherwise than
            the network (:class:`~exitwise.deploy.stages.ExportError`).
    """
    with new_folder(Path(folder), overwrite) as temporary, torch.no_grad(), evaluating(model):
        stages = list(flat_stages(model))
        programs = [_export(stage, k) for k, stage in enumerate(stages)]
        _check(stages, programs, varied(model.example, CHECKED, next(model.parameters())))
        entries = []
        for k, (stage, program) in enumerate(zip(stages, programs, strict=True)):
            path = temporary / f"stage_{k}.pt2"
            torch.export.save(program, path)
            entries.append({**describe_file(path), "inputs": stage.inputs, "outputs": stage.outputs})
        manifest = {
            "format": "exitwise-pt2",
            "version": VERSION,
            "torch": torch.__version__,
            **describe(model, calibration, classes, preprocessing, name, temporary),
            "stages": entries,
        }
        write_json(temporary / MANIFEST, manifest)
        write_sealed(temporary, manifest, calibration)


def _export(stage: FlatStage, k: int) -> torch.export.ExportedProgram:
    dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in stage.axes)
    try:
        return torch.export.export(stage.graph, stage.tensors, dynamic_shapes=(dynamic,))
    except Exception as error:  # torch.export raises errors of many kinds
        raise ExportError(f"stage {k + 1} cannot be exported: {deepest_cause(error)}") from error


def _check(stages: Sequence[FlatStage], programs: Sequence[torch.export.ExportedProgram], inputs: Inputs) -> None:
    """Raise ExportError unless each program does what its stage does."""
    tensors = tuple(named(inputs).values())
    for k, (stage, program) in enumerate(zip(stages, programs, strict=True)):
        wanted = dict(zip(stage.outputs, stage.graph(*tensors), strict=True))
        found = program.module()(*tensors)
        for name, one, other in zip(wanted, wanted.values(), found, strict=True):
            if not torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE):
                raise ExportError(
                    f"the exported stage {k + 1} does otherwise than the network in {name}; nothing was written"
                )
        following = stages[k + 1].inputs if k + 1 < len(stages) else []
        tensors = tuple(wanted[source_of(name)] for name in following)
