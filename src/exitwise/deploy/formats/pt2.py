"""torch.export: a program per stage, for AOTInductor, ExecuTorch and what else takes one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import MANIFEST
from exitwise.deploy.monitor import Reference
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
from exitwise.exiting.policy import ExitPolicy
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

VERSION, CHECKED, TOLERANCE = 1, 5, 1e-4
"""Of the manifest; images that a program is checked on, and by how much its outputs may differ there."""


def export_programs(
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
    """Write each stage as ``stage_K.pt2``, its batch dimension free, with a manifest of inputs, outputs and thresholds.

    A stage takes the state that the one before hands on, and gives confidence and prediction of its exit and the next
    state; comparing with the threshold and dropping what leaves is the caller's. Programs are checked against the
    network, at another batch size than they were made with, before the folder is there. Load them with
    ``torch.export.load`` only if you trust them: it unpickles.

    Args:
        model, policy, folder, classes, preprocessing, exit_macs, name, reference, overwrite: see
            :func:`~exitwise.deploy.formats.onnx.export_onnx`.

    Raises:
        UserError: if something is there that must not be replaced, or a stage cannot be exported or does otherwise than
            the network (:class:`~exitwise.deploy.stages.ExportError`).
    """
    with new_folder(Path(folder), overwrite) as temporary, torch.no_grad(), evaluating(model):
        stages = list(flat_stages(model, policy.measure))
        programs = [_export(stage, k) for k, stage in enumerate(stages)]
        _check(stages, programs)
        entries = []
        for k, (stage, program) in enumerate(zip(stages, programs, strict=True)):
            path = temporary / f"stage_{k}.pt2"
            torch.export.save(program, path)
            entries.append({**describe_file(path), "inputs": stage.inputs, "outputs": stage.outputs})
        manifest = {
            "format": "exitwise-pt2",
            "version": VERSION,
            "torch": torch.__version__,
            **describe(model, policy, classes, preprocessing, exit_macs, name, reference),
            "stages": entries,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _export(stage: FlatStage, k: int) -> torch.export.ExportedProgram:
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in stage.tensors)
    try:
        return torch.export.export(stage.graph, stage.tensors, dynamic_shapes=(dynamic,))
    except Exception as error:  # torch.export raises errors of many kinds
        raise ExportError(f"stage {k + 1} cannot be exported: {deepest_cause(error)}") from error


def _check(stages: Sequence[FlatStage], programs: Sequence[torch.export.ExportedProgram]) -> None:
    """Raise ExportError unless each program does what its stage does."""
    generator = torch.Generator().manual_seed(0)
    first = stages[0].tensors[0]
    images = torch.randn(CHECKED, *first.shape[1:], generator=generator).to(first.device, first.dtype)
    tensors: tuple[Tensor, ...] = (images,)
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
