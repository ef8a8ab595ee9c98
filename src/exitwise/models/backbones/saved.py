"""The early exits of a network in a file of their own, beside the checkpoint that the network came from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from exitwise.errors import ExitwiseWarning, UserError
from exitwise.kernels.inputs import named
from exitwise.models.backbones.attach import add_exits
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.fingerprint import fingerprint
from exitwise.models.heads import HeadFactory
from exitwise.storage.files import write_bytes

SCHEMA, VERSION = "exitwise/exits", 1
_EXAMPLE, _FITTED = "example/", "fitted on"


def save(model: ExitedModel, path: str | Path) -> None:
    """Write the early exits of a network: their weights, where they are, and fingerprints of the samples that they were
    fitted on. The network itself is not in the file.

    Args:
        model: from :func:`~exitwise.add_exits`.
        path: a file to write or replace, such as ``exits.safetensors``.

    Raises:
        UserError: for another network.
    """
    if not isinstance(model, ExitedModel):
        kind = type(model).__name__
        raise UserError(f"expected a network that add_exits made; got a {kind} (of a cascade, save each network's)")
    heads, rest = _parts(model)
    inputs = {f"{_EXAMPLE}{name}": tensor for name, tensor in named(model.example).items()}
    said = {
        "schema": SCHEMA,
        "version": VERSION,
        "at": [point.name for point in model.points],
        "head": model.head,
        "skip": model.skips,
        "classes": model.num_classes,
        "network": fingerprint(rest),
    }
    inputs[_FITTED] = torch.tensor(sorted(model.fitted_on), dtype=torch.uint64)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in {**heads, **inputs}.items()}
    write_bytes(Path(path), to_bytes(tensors, {"exitwise": json.dumps(said)}))


def load(network: nn.Module, path: str | Path, *, head: HeadFactory | None = None) -> ExitedModel:
    """Return a network with the early exits that :func:`save` wrote.

    Args:
        network: the one that they were fitted on, with its weights; it stays as it is.
        path: the file.
        head: the function that made the exits, where one did.

    Raises:
        UserError: if the file is no such file, or its exits do not go on this network.

    Warns:
        ExitwiseWarning: if the network's weights are not those that the exits were saved with.
    """
    said, tensors = _read(Path(path))
    if said["head"] == "own" and head is None:
        raise UserError(f"the exits in {path} are of a kind of your own: expected head=, the function that made them")
    like = next(network.parameters())
    inputs = {name: tensor.to(like.device) for name, tensor in tensors.items() if name.startswith(_EXAMPLE)}
    example: Any = {name.removeprefix(_EXAMPLE): tensor for name, tensor in inputs.items()}
    example = example.get("", example)
    made: Any = head if said["head"] == "own" else said["head"]
    model = add_exits(
        network, at=said["at"], num_classes=said["classes"], head=made, example=example, skip=said["skip"]
    )
    heads, rest = _parts(model)
    found = {name: tensor for name, tensor in tensors.items() if name not in inputs and name != _FITTED}
    wanted = {name: tuple(tensor.shape) for name, tensor in heads.items()}
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
        raise UserError(f"expected exits of {type(network).__name__} at {', '.join(said['at'])} in {path}; got others")
    with torch.no_grad():
        for name, tensor in heads.items():
            tensor.copy_(found[name])
    model.fitted_on.update(tensors[_FITTED].tolist())
    if fingerprint(rest) != said["network"]:
        warnings.warn(
            f"the exits in {path} were saved with other weights of the network: fit and calibrate them anew",
            ExitwiseWarning,
            stacklevel=2,
        )
    return model


def _parts(model: ExitedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state of the early heads, and that of the rest."""
    state = model.state_dict(keep_vars=True)
    early = tuple(f"stages.{k}.head." for k in range(model.exits - 1))
    heads = {name: tensor for name, tensor in state.items() if name.startswith(early)}
    return heads, {name: tensor for name, tensor in state.items() if name not in heads}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["exitwise"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if said["schema"] != SCHEMA or said["version"] != VERSION:
            raise UserError(f"expected {SCHEMA} of version {VERSION} in {path}; got {said['schema']} {said['version']}")
        kinds = {"at": list, "head": str, "skip": bool, "classes": int, "network": str}
        if not all(isinstance(said[key], kind) for key, kind in kinds.items()) or _FITTED not in tensors:
            raise TypeError("something else")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"expected exits that exitwise.save wrote in {path}; {str(error) or 'something else'}"
        ) from error
    return said, tensors
