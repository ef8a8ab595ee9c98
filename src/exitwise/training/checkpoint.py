"""Saves and loads a tree of tensors and plain values as a folder: atomic, versioned, verified, never pickled.

Knows nothing of what the tree means.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exitwise.errors import UserError

VERSION = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another version."""


def save_checkpoint(folder: Path, tree: Any) -> None:
    """Write ``tree`` (dicts, lists, tensors, numbers, strings, None) as the folder ``folder``.

    Everything is written under a temporary name beside it, flushed to disk and renamed, so that
    ``folder`` is either complete or not there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tensors: dict[str, Tensor] = {}
        skeleton = json.dumps(_encode(tree, tensors))
        save_file(tensors, temporary / _TENSORS)
        digests = {"tensors": _sha256(temporary / _TENSORS), "tree": hashlib.sha256(skeleton.encode()).hexdigest()}
        (temporary / _STATE).write_text(json.dumps({"version": VERSION, "sha256": digests, "tree": skeleton}))
        for path in (temporary / _TENSORS, temporary / _STATE, temporary):
            _flush(path)
        temporary.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_checkpoint(folder: Path) -> Any:
    """The tree that :func:`save_checkpoint` wrote, its tensors on the CPU.

    Raises:
        CheckpointError: if the folder is missing, incomplete, damaged or of another version.
    """
    if not folder.is_dir():
        raise CheckpointError(f"expected a checkpoint at {folder}; found none")
    try:
        state = json.loads((folder / _STATE).read_text())
        if state["version"] != VERSION:
            raise CheckpointError(f"expected a checkpoint of version {VERSION} at {folder}; got {state['version']}")
        digests, skeleton = state["sha256"], state["tree"]
        if _sha256(folder / _TENSORS) != digests["tensors"]:
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {_TENSORS} does not match its SHA-256")
        if hashlib.sha256(skeleton.encode()).hexdigest() != digests["tree"]:
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {_STATE} does not match its SHA-256")
        return _decode(json.loads(skeleton), load_file(folder / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint at {folder} is damaged: {error}") from error


class CheckpointFolder:
    """The checkpoints of one run, named by kind and iteration: ``last-00000100``, ``best-00000080``.

    Args:
        root: the folder that holds them; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, kind: str, iteration: int, tree: Any) -> None:
        """Write a checkpoint and then remove the older ones of its kind."""
        folder = self.root / f"{kind}-{iteration:08d}"
        if folder.exists():  # the same training state again, after a resume
            return
        save_checkpoint(folder, tree)
        for older in self._folders(kind):
            if older != folder:
                shutil.rmtree(older)

    def latest(self, kind: str) -> Path | None:
        """The newest checkpoint of a kind."""
        return max(self._folders(kind), default=None)

    def _folders(self, kind: str) -> list[Path]:
        return sorted(self.root.glob(f"{kind}-*"))


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``, with its tensors put aside. Dicts become pairs, so that integer keys survive."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"cannot save a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if kind == "list":
        return [_decode(item, tensors) for item in content]
    return content


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
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Set the global generators to a :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
