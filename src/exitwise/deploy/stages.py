"""What every export starts from: each stage as a graph on a flat list of tensors, a manifest, and a folder that is
written whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import check_out
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.exiting.confidence import Confidence, Reading
from exitwise.exiting.policy import ExitPolicy
from exitwise.models.staged import Stage, StagedModel
from exitwise.version import __version__


class ExportError(UserError):
    """A network cannot be exported, or the export does not do what the network does."""


class StageGraph(nn.Module):
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


class FlatStage(NamedTuple):
    """A stage to export.

    Attributes:
        graph: from state (and votes) to confidence, prediction (and streak) and the next state.
        tensors: an example of its inputs, a batch of two.
        inputs, outputs: names.
    """

    graph: StageGraph
    tensors: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]


def flat_stages(model: StagedModel, confidence: Confidence) -> Iterator[FlatStage]:
    """All stages in order."""
    parameter = next(model.parameters())
    state: Any = torch.randn(2, *model.input_shape, device=parameter.device)
    votes: list[Tensor] = []
    answers = ["confidence", "prediction", *(["streak"] if confidence.needs_every_exit else [])]
    for k, stage in enumerate(cast("list[Stage]", list(model.stages))):
        tensors, spec = tree_flatten(state)
        last = k == model.exits - 1
        inputs = [f"state_{i}" for i in range(len(tensors))]
        if votes:
            inputs += ["before_prediction", "before_streak"]
        outputs = [*answers]
        state = stage.body(state)
        if not last:
            outputs += [f"next_{i}" for i in range(len(tree_flatten(state)[0]))]
        graph = StageGraph(stage, spec, confidence, k, last).eval()
        yield FlatStage(graph, (*tensors, *votes), inputs, outputs)
        if confidence.needs_every_exit:
            votes = [torch.zeros(2, dtype=torch.int64, device=parameter.device) for _ in range(2)]


def describe(
    model: StagedModel,
    policy: ExitPolicy,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    exit_macs: Sequence[int],
    name: str,
    reference: Reference | None,
) -> dict[str, Any]:
    """What a manifest says besides its format and files."""
    return {
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
    }


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` if all goes well, and else is removed.

    Raises:
        UserError: if something is there that must not be replaced (:func:`check_out`).
    """
    check_out(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    made, former = temporary / "made", temporary / "former"
    made.mkdir()
    try:
        yield made
        check_out(folder, overwrite)
        if folder.exists():
            folder.rename(former)
        made.rename(folder)
    finally:
        if former.exists() and not folder.exists():
            former.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


def describe_file(path: Path) -> dict[str, str]:
    """Name and SHA-256."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def deepest_cause(error: BaseException) -> str:
    """The first line of what an error was caused by in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
