"""Loads what the authors of MSDNet, RANet and L2W-DEN released: their configurations and checkpoints, by name map.

Knows their names and file layouts; the networks themselves know nothing of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exitwise.models.msdnet import MSDNet
from exitwise.models.ranet import PlainBlock, RANet
from exitwise.storage.tensors import read_weights

_HEADS: Sequence[tuple[str, str]] = (
    (r"^module\.", ""),
    (r"^classifier\.(\d+)\.m\.", r"stages.\1.head.convs."),
    (r"^classifier\.(\d+)\.linear\.", r"stages.\1.head.linear."),
)
_MSDNET: Sequence[tuple[str, str]] = (
    *_HEADS,
    (r"^blocks\.(\d+)\.(\d+)\.(?:layers|m)\.(\d+)\.", r"stages.\1.body.\2.scales.\3."),
    (r"\.conv_normal\.net\.([01])\.", r".same.0.\1."),
    (r"\.conv_normal\.net\.3\.", ".same.1.0."),
    (r"\.conv_normal\.net\.4\.", ".same.1.1."),
    (r"\.conv_down\.net\.([01])\.", r".down.0.\1."),
    (r"\.conv_down\.net\.3\.", ".down.1.0."),
    (r"\.conv_down\.net\.4\.", ".down.1.1."),
    (r"\.net\.", "."),
)
_RANET: Sequence[tuple[str, str]] = (
    *_HEADS,
    (r"^FirstLayer\.layers\.", "stages.0.body.stem.scales."),
    (r"\.conv_normal\.", ".same."),
    (r"\.conv_up\.", ".lower."),
    (r"\.conv_last\.", ".last."),
    (r"\.trans\.", ".transition."),
    (r"\.(same|lower)\.net\.([01])\.", r".\1.0.\2."),
    (r"\.(same|lower)\.net\.3\.", r".\1.1.0."),
    (r"\.(same|lower)\.net\.4\.", r".\1.1.1."),
    (r"\.net\.", "."),
)
_CLASSES = {"cifar10": 10, "cifar100": 100, "ImageNet": 1000}


def our_name(name: str) -> str:
    """Our name of a parameter or buffer that the authors' MSDNet calls ``name``."""
    return _renamed(name, _MSDNET)


def our_ranet_name(model: RANet, name: str) -> str:
    """Our name of a parameter or buffer that the authors' RANet calls ``name``; ``model`` says which stage has it."""

    def place(match: re.Match[str]) -> str:
        flow, block = int(match[1]), int(match[2])
        if flow >= len(model.flow_blocks) or block >= model.flow_blocks[flow]:
            return match[0]
        stage, position = model.stage_of(flow, block)
        return f"stages.{stage}.body.blocks.{position}."

    name = re.sub(r"^(?:module\.)?scale_flows\.(\d+)\.(\d+)\.", place, _renamed(name, _RANET))
    owner = re.match(r"stages\.\d+\.body\.blocks\.\d+", name)
    plain = owner is not None and isinstance(model.get_submodule(owner[0]), PlainBlock)
    return name.replace(".same.", ".") if plain else name


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def msdnet_from_authors(config: Mapping[str, Any]) -> MSDNet:
    """Return an MSDNet from a configuration in the names of the authors' command line (``nBlocks``, ``grFactor``, ...).

    Raises:
        ValueError: for a data set or an option that they did not publish.
    """
    return MSDNet(
        base=config["base"],
        prune=config["prune"],
        **_shared_options(config),
    )


def ranet_from_authors(config: Mapping[str, Any]) -> RANet:
    """Return a RANet from a configuration in the names of the authors' command line; see
    :func:`msdnet_from_authors`."""
    return RANet(
        block_step=config["block_step"],
        scales=config["scale_list"],
        compress=config["compress_factor"],
        **_shared_options(config),
    )


def _shared_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both networks are sized by, and the classes, stem, heads and input shape that a data set brings."""
    if config["data"] not in _CLASSES:
        raise ValueError(f"data must be one of {', '.join(_CLASSES)}; got {config['data']!r}")
    if not config.get("bottleneck", True) or config.get("reduction", 0.5) != 0.5 or not config.get("bnAfter", True):
        raise ValueError("expected bottleneck, BatchNorm after and reduction 0.5, as published; got another network")
    imagenet = config["data"] == "ImageNet"
    return {
        "blocks": config["nBlocks"],
        "step": config["step"],
        "step_mode": "lin_grow" if config["stepmode"] == "lg" else config["stepmode"],
        "channels": config["nChannels"],
        "growth": config["growthRate"],
        "growth_factors": config["grFactor"],
        "bottleneck_factors": config["bnFactor"],
        "num_classes": _CLASSES[config["data"]],
        "stem": "imagenet" if imagenet else "cifar",
        "head_channels": None if imagenet else 128,
        "input_shape": (3, 224, 224) if imagenet else (3, 32, 32),
    }


def load_authors_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of the authors' MSDNet, RANet or L2W-DEN release into a network of the same configuration.

    Accepts their ``.pth.tar`` (read without unpickling code), and the same parameters as ``.safetensors`` or
    ``.npz``. The network is unchanged if anything does not fit.

    Raises:
        ValueError: if the file cannot be read safely, or holds another network; names what differs.
    """
    load_authors_state(model, read_weights(path))


def load_authors_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load parameters and buffers under the authors' names; see :func:`load_authors_checkpoint`."""
    rename = partial(our_ranet_name, model) if isinstance(model, RANet) else our_name
    ours = {rename(name): tensor for name, tensor in state.items()}
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
