"""Loads what the authors of MSDNet and L2W-DEN released: their configurations and checkpoints, by name map.

Knows their names and file layouts; the networks themselves know nothing of them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitwise.models.msdnet import MSDNet

_NAMES: Sequence[tuple[str, str]] = (
    (r"^module\.", ""),
    (r"^classifier\.(\d+)\.m\.", r"stages.\1.head.convs."),
    (r"^classifier\.(\d+)\.linear\.", r"stages.\1.head.linear."),
    (r"^blocks\.(\d+)\.(\d+)\.(?:layers|m)\.(\d+)\.", r"stages.\1.body.\2.scales.\3."),
    (r"\.conv_normal\.net\.([01])\.", r".same.0.\1."),
    (r"\.conv_normal\.net\.3\.", ".same.1.0."),
    (r"\.conv_normal\.net\.4\.", ".same.1.1."),
    (r"\.conv_down\.net\.([01])\.", r".down.0.\1."),
    (r"\.conv_down\.net\.3\.", ".down.1.0."),
    (r"\.conv_down\.net\.4\.", ".down.1.1."),
    (r"\.net\.", "."),
)
_CLASSES = {"cifar10": 10, "cifar100": 100, "ImageNet": 1000}


def our_name(name: str) -> str:
    """Our name of a parameter or buffer that the authors' MSDNet calls ``name``."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def msdnet_from_authors(config: Mapping[str, Any]) -> MSDNet:
    """An MSDNet from a configuration in the names of the authors' command line (``nBlocks``, ``grFactor``, ...).

    Raises:
        ValueError: for a data set or an option that they did not publish.
    """
    if config["data"] not in _CLASSES:
        raise ValueError(f"data must be one of {', '.join(_CLASSES)}; got {config['data']!r}")
    if not config.get("bottleneck", True) or config.get("reduction", 0.5) != 0.5:
        raise ValueError("expected bottleneck and reduction 0.5, as published; got another network")
    imagenet = config["data"] == "ImageNet"
    return MSDNet(
        _CLASSES[config["data"]],
        blocks=config["nBlocks"],
        base=config["base"],
        step=config["step"],
        step_mode=config["stepmode"],
        channels=config["nChannels"],
        growth=config["growthRate"],
        growth_factors=config["grFactor"],
        bottleneck_factors=config["bnFactor"],
        prune=config["prune"],
        stem="imagenet" if imagenet else "cifar",
        head_channels=None if imagenet else 128,
        input_shape=(3, 224, 224) if imagenet else (3, 32, 32),
    )


def load_authors_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of the authors' MSDNet or L2W-DEN release into a network of the same configuration.

    Accepts their ``.pth.tar`` (read without unpickling code), and the same parameters as ``.safetensors`` or
    ``.npz``. The network is unchanged if anything does not fit.

    Raises:
        ValueError: if the file cannot be read safely, or holds another network; names what differs.
    """
    load_authors_state(model, read_authors_state(path))


def load_authors_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load parameters and buffers under the authors' names; see :func:`load_authors_checkpoint`."""
    ours = {our_name(name): tensor for name, tensor in state.items()}
    expected = model.state_dict()
    for problem, names in (
        ("lacks", sorted(set(expected) - set(ours))),
        ("has the unknown", sorted(set(ours) - set(expected))),
        ("has another shape for", sorted(n for n in set(ours) & set(expected) if ours[n].shape != expected[n].shape)),
    ):
        if names:
            raise ValueError(
                f"this is a checkpoint of another network: it {problem} {names[0]}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
    model.load_state_dict(ours)


def read_authors_state(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors in a released file, under the authors' names."""
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
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a checkpoint of tensors and plain values in {path}; could not read it: {reason}"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected a state_dict of tensors in {path}; got {type(state).__name__}")
    return state
