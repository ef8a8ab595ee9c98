"""Reads network weights from files that others wrote, without ever running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors in a ``.safetensors``, ``.npz`` or torch file.

    Of a torch file with a ``state_dict``, that. Code in a file is not run.

    Raises:
        ValueError: if it cannot be read safely, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a checkpoint file; found none at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a checkpoint of tensors and plain values in {path}; could not read it: {reason}"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected a state_dict of tensors in {path}; got {type(state).__name__}")
    return state
