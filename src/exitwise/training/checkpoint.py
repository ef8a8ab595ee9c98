"""Saves and loads a tree of tensors and plain values as a folder: atomic, versioned, verified, never pickled.

Knows nothing of what the tree means.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from exitwise.errors import UserError
from exitwise.weighting.replay import numpy_state, python_state, set_numpy_state, set_python_state

VERSION = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, of another version, or would hold a value that is not finite."""


def save_checkpoint(folder: Path, tree: Any) -> None:
    """Write ``tree`` (dicts, lists, tensors, numbers, strings, None) as the folder ``folder``.

    Everything is written under a temporary name beside it, flushed to disk and renamed, so that
    ``folder`` is either complete or not there. One that is there already is replaced.

    Raises:
        CheckpointError: if the tree holds a number that is not finite.
        OSError: if it cannot be written, for want of room say. Either way nothing is changed.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_encode(tree, tensors, ""))
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / _TENSORS)
        digests = {"tensors": _sha256(temporary / _TENSORS), "tree": hashlib.sha256(skeleton.encode()).hexdigest()}
        (temporary / _STATE).write_text(json.dumps({"version": VERSION, "sha256": digests, "tree": skeleton}))
        for path in (temporary / _TENSORS, temporary / _STATE, temporary):
            _flush(path)
        if folder.exists():
            remove_checkpoint(folder)
        temporary.rename(folder)
        _flush(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(f"could not save {folder}: {error} (the checkpoints before it are kept)") from error
        raise


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, under a hidden name, so that a folder of a checkpoint's name is always whole."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def load_checkpoint(folder: Path) -> Any:
    """Return the tree that :func:`save_checkpoint` wrote, its tensors on the CPU.

    Raises:
        CheckpointError: if the folder is missing, incomplete, damaged or of another version.
    """
    if not folder.is_dir():
        raise CheckpointError(f"expected a checkpoint at {folder}; found none")
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            raise CheckpointError(
                f"expected a checkpoint of version {VERSION} at {folder}; got {state['version']}: use it with the "
                "exitwise that wrote it (environment.json names it), or train into another folder"
            )
        digests, skeleton = state["sha256"], state["tree"]
        if _sha256(folder / _TENSORS) != digests["tensors"]:
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {_TENSORS} does not match its SHA-256")
        if hashlib.sha256(skeleton.encode()).hexdigest() != digests["tree"]:
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {_STATE} does not match its SHA-256")
        return _decode(json.loads(skeleton), load_file(folder / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint at {folder} is damaged: {error}") from error


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON for ``value``, with its tensors put aside. Dicts become pairs, so that integer keys survive.

    ``where`` is the way from the root, with a dot before each key.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        _check_finite(bool(tensors[name].isfinite().all()), where)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, tensors, f"{where}.{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item, tensors, f"{where}.{index}") for index, item in enumerate(value)]}
    if isinstance(value, float):
        _check_finite(math.isfinite(value), where)
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"cannot save a {type(value).__name__}")


def _check_finite(finite: bool, where: str) -> None:
    if not finite:
        raise CheckpointError(
            f"expected finite numbers to save; {where[1:]} holds another, so no checkpoint was written (those before "
            "it are kept; a lower lr may help)"
        )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if kind == "list":
        return [_decode(item, tensors) for item in content]
    return content


def sha256_of_tensors(folder: Path) -> str:
    """Return the SHA-256 of the tensors in a checkpoint that is there."""
    return _sha256(folder / _TENSORS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state() -> dict[str, Tensor]:
    """States of the global generators, for a checkpoint."""
    state = {"cpu": torch.get_rng_state(), "python": python_state(), "numpy": numpy_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Set the global generators to a :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "python" in state:  # not in checkpoints of before
        set_python_state(state["python"])
        set_numpy_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
