"""Networks with exits, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exitwise.errors import UserError, near_match
from exitwise.models.cost import Cost, count_cost
from exitwise.models.msdnet import MSDNet
from exitwise.models.staged import Stage, StagedModel

__all__ = ["Cost", "MSDNet", "Stage", "StagedModel", "count_cost", "create_model", "list_models"]

_IMAGENET = {
    "num_classes": 1000,
    "step_mode": "even",
    "channels": 32,
    "growth": 16,
    "growth_factors": (1, 2, 4, 4),
    "bottleneck_factors": (1, 2, 4, 4),
    "stem": "imagenet",
    "head_channels": None,
    "input_shape": (3, 224, 224),
}

_MSDNETS: Mapping[str, Mapping[str, Any]] = {
    "msdnet_small": {
        "blocks": 4,
        "step": 2,
        "step_mode": "even",
        "channels": 4,
        "growth": 4,
        "growth_factors": (1, 2),
        "bottleneck_factors": (1, 2),
        "head_channels": 8,
        "input_shape": (1, 8, 8),
    },
    "msdnet_cifar_narrow": {
        "channels": 8,
        "growth": 8,
        "growth_factors": (1, 2, 2),
        "bottleneck_factors": (1, 1, 1),
        "stem": "imagenet",
        "head_channels": 16,
    },
    "msdnet_cifar_5": {},
    "msdnet_cifar_7": {"blocks": 7},
    "msdnet_cifar_even_7": {"blocks": 7, "base": 4, "step": 2, "step_mode": "even"},
    "msdnet_cifar_even_11": {"blocks": 11, "base": 4, "step": 2, "step_mode": "even"},
    "msdnet_imagenet_step4": {**_IMAGENET, "base": 4, "step": 4},
    "msdnet_imagenet_step6": {**_IMAGENET, "base": 6, "step": 6},
    "msdnet_imagenet_step7": {**_IMAGENET, "base": 7, "step": 7},
}


def list_models() -> list[str]:
    """Names that :func:`create_model` knows."""
    return list(_MSDNETS)


def check_model_name(name: str) -> None:
    """Raise UserError, with the nearest known name, unless :func:`create_model` knows ``name``."""
    if name not in _MSDNETS:
        raise UserError(f"unknown model {name!r}; {near_match(name, _MSDNETS)}")


def create_model(name: str, **overrides: Any) -> StagedModel:
    """Build a network with random weights.

    Args:
        name: one of :func:`list_models`.
        overrides: arguments of the network's class to use in place of the named size's, such as
            ``num_classes`` or ``input_shape`` (channels, height, width).

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one) or unsuitable sizes.
    """
    check_model_name(name)
    return MSDNet(**{**_MSDNETS[name], **overrides})
