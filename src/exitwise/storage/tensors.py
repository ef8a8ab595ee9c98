"""Reads network weights from files that others wrote, without ever running what is in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_UNREADABLE = (
    *(pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile),
    *(RuntimeError, EOFError, OSError, ValueError, TypeError),
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return names and tensors in a ``.safetensors``, ``.npz`` or torch file.

    Of a torch file with a ``state_dict`` or a ``model``, that. Code in a file is not run.

    Raises:
        ValueError: if it cannot be read safely, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a checkpoint file; found none at {path}")
    try:
        if path.suffix == ".safetensors":
            return _checked(load_file(path), path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _checked({name: torch.from_numpy(arrays[name]) for name in arrays.files}, path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a checkpoint of tensors and plain values in {path}; could not read it: {reason}"
        ) from error
    return _checked(loaded, path)


def _checked(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state_dict in what a file held, or under ``state_dict`` or ``model`` in it."""
    state = loaded
    if isinstance(loaded, dict):
        state = next((loaded[key] for key in ("state_dict", "model") if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(state, dict):
        raise ValueError(f"expected a state_dict of tensors in {path}; got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"expected names and tensors in {path}; got {name!r} and {type(value).__name__}")
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise ValueError(f"expected plain real tensors in {path}; {name} is {value.layout}, {value.dtype}")
        if not value.isfinite().all():
            raise ValueError(f"expected finite numbers in {path}; {name} has others")
    return state
