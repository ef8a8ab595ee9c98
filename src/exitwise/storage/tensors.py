"""Reads network weights from files that others wrote, without ever running what is in them."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from exitwise.errors import UserError, in_a_line

_UNREADABLE = (
    *(pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, struct.error),
    *(RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, AttributeError),
)
_KINDS = {".safetensors": "safetensors file", ".npz": "archive of NumPy arrays"}

IN_A_FOLDER = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""What a folder of weights holds, by the names that Hugging Face's libraries give."""

STATES = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model", "model_state_dict", "module")
"""Where training programs keep the weights in what they save. Averages come first, as timm's own loader takes them."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return names and tensors in a ``.safetensors``, ``.npz`` or torch file, or in the files that an
    ``.index.json`` or a folder names.

    Of a torch file with several things, that under one of :data:`STATES`. Code in a file is not run: objects other
    than tensors and plain values, such as the arguments that timm's train.py saves, are passed over.

    Raises:
        UserError: if it cannot be read safely, or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if not inside:
            raise UserError(f"expected {', '.join(IN_A_FOLDER[:-1])} or {IN_A_FOLDER[-1]} in {path}; found none")
        path = inside[0]
    if not path.is_file():
        raise UserError(f"expected a checkpoint file; found none at {path}")
    return _read_shards(path) if path.suffix == ".json" else _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                loaded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            loaded = _load_torch(path)
    except _UNREADABLE as error:
        raise UserError(
            f"expected a checkpoint of tensors and plain values in {path}; could not read it: {_reason(error, path)}"
        ) from error
    return _checked(loaded, path)


def _reason(error: Exception, path: Path) -> str:
    """Return why a file could not be read; what the libraries say of it is for their own users."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError):
        return "it is a pickle that may run code: save a state_dict, by torch.save or as safetensors"
    return f"it is damaged, or no {_KINDS.get(path.suffix, 'file of torch.save')}"


class _PassedOver:
    """Stands for an object of a class that is not known to be harmless; takes what it is made of, and drops it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _PassedOver:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load_torch(path: Path) -> Any:
    strange = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    with torch.serialization.safe_globals([(_PassedOver, name) for name in strange]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"expected an index with a weight_map in {index}; {in_a_line(error)}") from error
    outside = [file for file in names.values() if Path(file).name != file]
    if outside:
        raise UserError(f"expected files beside {index}, by their names; it lists {outside[0]!r}")
    missing = [file for file in names.values() if not (index.parent / file).is_file()]
    if missing:
        raise UserError(f"expected {missing[0]} beside {index}; found none")
    state: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        state.update(_read_file(index.parent / file))
    absent = sorted(set(names) - set(state))
    if absent:
        raise UserError(f"expected {absent[0]} in {index.parent / names[absent[0]]}, as {index.name} says; found none")
    return state


def _checked(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights in what a file held, or under one of :data:`STATES` in it."""
    state = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[key] for key in STATES if isinstance(loaded.get(key), Mapping)), loaded)
    if isinstance(state, _PassedOver):
        raise UserError(f"expected names and tensors in {path}; got an object: save its state_dict() instead")
    if not isinstance(state, Mapping):
        raise UserError(f"expected a state_dict of tensors in {path}; got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = "an object" if isinstance(value, _PassedOver) else type(value).__name__
            raise UserError(
                f"expected names and tensors in {path}; got {name!r} and {kind} (of several things, weights are "
                f"looked for under {', '.join(STATES)})"
            )
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise UserError(f"expected plain real tensors in {path}; {name} is {value.layout}, {value.dtype}")
        if not value.isfinite().all():
            raise UserError(f"expected finite numbers in {path}; {name} has others")
    return dict(state)
