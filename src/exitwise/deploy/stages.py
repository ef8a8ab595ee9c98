"""What every export starts from: each stage as a graph on a flat list of tensors, a manifest, and a folder that is
written whole or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.bundle import check_out, sha256_of
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.manifest import TEXT, TOKENIZER, Input
from exitwise.deploy.names import LOGITS, NEXT, STATE
from exitwise.deploy.texts import Texts
from exitwise.errors import UserError
from exitwise.kernels.inputs import batch_of, is_tokens, named
from exitwise.models.staged import Stage, StagedModel
from exitwise.version import __version__


class ExportError(UserError):
    """A network cannot be exported, or the export does not do what the network does."""


class StageGraph(nn.Module):
    """A stage on a flat list of tensors.

    Args:
        stage: body and head.
        spec: how its state is made of tensors.
        last: whether no stage follows.
    """

    def __init__(self, stage: Stage, spec: TreeSpec, last: bool) -> None:
        super().__init__()
        self.stage, self.spec, self.last = stage, spec, last

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        logits, state = self.step(*tensors)
        return (logits, *([] if self.last else tree_flatten(state)[0]))

    def step(self, *tensors: Tensor) -> tuple[Tensor, Any]:
        """Return the exit's logits, and the next state."""
        state = self.stage.body(tree_unflatten(list(tensors), self.spec))
        return self.stage.head(state), state


class FlatStage(NamedTuple):
    """A stage to export.

    Attributes:
        graph: from the state to logits and the next state.
        tensors: an example of its inputs, a batch of two.
        axes: of each of these, which axes are free, by name.
        inputs, outputs: names (:mod:`exitwise.deploy.names`).
    """

    graph: StageGraph
    tensors: tuple[Tensor, ...]
    axes: tuple[dict[int, str], ...]
    inputs: list[str]
    outputs: list[str]


BATCH, TOKENS = "batch", "tokens"
"""Names of free axes."""


def input_names(model: StagedModel) -> list[str]:
    """Return what a bundle calls the inputs of a network."""
    names = named(model.example)
    return list(names) if "" not in names else ["images" if names[""].dim() == 4 else "inputs"]


def described_inputs(model: StagedModel, preprocessing: Preprocessing | Texts | None) -> list[Input]:
    """Return what a bundle says of a network's inputs."""
    example = batch_of(model.example, 2, next(model.parameters()))
    return [
        Input(
            name,
            str(tensor.dtype).removeprefix("torch."),
            (BATCH, *([TOKENS] if is_tokens(tensor) else tensor.shape[1:])),
            TEXT if isinstance(preprocessing, Texts) else image_wish(preprocessing),
        )
        for name, tensor in zip(input_names(model), named(example).values(), strict=True)
    ]


def image_wish(preprocessing: Preprocessing | None) -> dict[str, Any] | None:
    """Return what a bundle says of the way from an image file to an input; None: it takes tensors, as of signals."""
    if preprocessing is None or preprocessing.signals:
        return None
    return {
        "kind": "image",
        "image_size": preprocessing.image_size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "shorter_side": preprocessing.shorter_side,
    }


def flat_stages(model: StagedModel) -> Iterator[FlatStage]:
    """Yield all stages in order."""
    state: Any = batch_of(model.example, 2, next(model.parameters()))
    longer: Any = tree_map(
        lambda tensor: torch.cat([tensor, tensor[:, -1:]], 1) if is_tokens(tensor) else tensor, state
    )
    for k, stage in enumerate(cast("list[Stage]", list(model.stages))):
        last = k == model.exits - 1
        tensors, spec = tree_flatten(state)
        graph = StageGraph(stage, spec, last).eval()
        inputs = input_names(model) if k == 0 else [f"{STATE}{i}" for i in range(len(tensors))]
        others = tree_flatten(longer)[0]
        axes = tuple(_free_axes(one, other) for one, other in zip(tensors, others, strict=True))
        _, state = graph.step(*tensors)
        _, longer = graph.step(*others)
        following = [] if last else [f"{NEXT}{i}" for i in range(len(tree_flatten(state)[0]))]
        yield FlatStage(graph, tuple(tensors), axes, inputs, [LOGITS, *following])


def _free_axes(tensor: Tensor, longer: Tensor) -> dict[int, str]:
    """Return the axes of a tensor that follow the batch and the number of tokens, from what there is of one more."""
    sizes = zip(tensor.shape, longer.shape, strict=True)
    return {0: BATCH, **{axis: TOKENS for axis, (size, other) in enumerate(sizes) if size != other}}


def describe(
    model: StagedModel,
    calibration: Calibration,
    classes: Sequence[str],
    preprocessing: Preprocessing | Texts | None,
    name: str,
    folder: Path,
) -> dict[str, Any]:
    """Return what a manifest says besides its format and files; a tokenizer is written to the folder."""
    tokenizer = None
    if isinstance(preprocessing, Texts):
        (folder / TOKENIZER).write_bytes(preprocessing.content)
        tokenizer = {"tokenizer": describe_file(folder / TOKENIZER)}
    return {
        "exitwise": __version__,
        "model": name,
        "classes": list(classes),
        "num_classes": model.num_classes,
        "inputs": [each.to_json() for each in described_inputs(model, preprocessing)],
        "exit_macs": list(calibration.exit_macs),
        **(tokenizer or {}),
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
    return {"file": path.name, "sha256": sha256_of(path)}


def deepest_cause(error: BaseException) -> str:
    """Return the first line of what an error was caused by in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
