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
from exitwise.deploy.names import ANSWER, BEFORE, NEXT, STATE
from exitwise.errors import UserError
from exitwise.exiting.measures import Measure, Reading
from exitwise.exiting.policy import ExitPolicy
from exitwise.models.staged import Stage, StagedModel
from exitwise.version import __version__


class ExportError(UserError):
    """A network cannot be exported, or the export does not do what the network does."""


class StageGraph(nn.Module):
    """A stage on a flat list of tensors, with the reading of its exit.

    Args:
        stage: body and head.
        spec: how its state is made of tensors.
        measure: reads its exit.
        exit: which it is, 0-based.
        last: whether no stage follows.
        carried: names of what the measure carried on at the exit before.
    """

    def __init__(
        self, stage: Stage, spec: TreeSpec, measure: Measure, exit: int, last: bool, carried: Sequence[str]
    ) -> None:
        super().__init__()
        self.stage, self.spec, self.measure = stage, spec, measure
        self.exit, self.last, self.carried = exit, last, tuple(carried)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        reading, state = self.step(*tensors)
        return (*answers_of(reading).values(), *([] if self.last else tree_flatten(state)[0]))

    def step(self, *tensors: Tensor) -> tuple[Reading, Any]:
        """Return what the exit says, and the next state."""
        count = len(tensors) - len(self.carried)
        before = dict(zip(self.carried, tensors[count:], strict=True)) or None
        state = self.stage.body(tree_unflatten(list(tensors[:count]), self.spec))
        return self.measure.read(self.stage.head(state), self.exit, before), state


def answers_of(reading: Reading) -> dict[str, Tensor]:
    """Return what a graph gives of its exit, by name: the answer, and what its measure carries on."""
    return {**dict(zip(ANSWER, reading[:2], strict=True)), **(reading.state or {})}


class FlatStage(NamedTuple):
    """A stage to export.

    Attributes:
        graph: from the state, and what the measure carried on, to confidence, prediction, what it carries on now, and
            the next state.
        tensors: an example of its inputs, a batch of two.
        inputs, outputs: names (:mod:`exitwise.deploy.names`).
    """

    graph: StageGraph
    tensors: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]


def flat_stages(model: StagedModel, measure: Measure) -> Iterator[FlatStage]:
    """Yield all stages in order."""
    parameter = next(model.parameters())
    state: Any = torch.randn(2, *model.input_shape, device=parameter.device)
    carried: dict[str, Tensor] = {}
    for k, stage in enumerate(cast("list[Stage]", list(model.stages))):
        last = k == model.exits - 1
        tensors, spec = tree_flatten(state)
        graph = StageGraph(stage, spec, measure, k, last, list(carried)).eval()
        inputs = [*(f"{STATE}{i}" for i in range(len(tensors))), *(f"{BEFORE}{name}" for name in carried)]
        tensors = [*tensors, *carried.values()]
        reading, state = graph.step(*tensors)
        following = [] if last else [f"{NEXT}{i}" for i in range(len(tree_flatten(state)[0]))]
        yield FlatStage(graph, tuple(tensors), inputs, [*answers_of(reading), *following])
        carried = reading.state or {}


def describe(
    model: StagedModel,
    policy: ExitPolicy,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    exit_macs: Sequence[int],
    name: str,
    reference: Reference | None,
) -> dict[str, Any]:
    """Return what a manifest says besides its format and files."""
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
        **policy.measure.to_json(),
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
    """Return name and SHA-256."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def deepest_cause(error: BaseException) -> str:
    """Return the first line of what an error was caused by in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
