"""Networks with exits, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exitwise.models.backbones.attach import add_exits
from exitwise.models.backbones.libraries import Pretrained, check_backbone_name, create_backbone, data_config
from exitwise.models.cost import Cost, count_cost
from exitwise.models.msdnet import MSDNet
from exitwise.models.ranet import RANet
from exitwise.models.staged import Stage, StagedModel
from exitwise.settings.checks import check_network

__all__ = ["Cost", "MSDNet", "RANet", "Stage", "StagedModel", "count_cost", "create_model", "list_models"]

Options = Mapping[str, Any]

_IMAGENET: Options = {
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

_MSDNETS: Mapping[str, Options] = {
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

_RANETS: Mapping[str, Options] = {
    "ranet_small": {
        "blocks": 1,
        "block_step": 1,
        "channels": 4,
        "growth": 4,
        "growth_factors": (2, 1),
        "bottleneck_factors": (2, 1),
        "scales": (1, 2),
        "head_channels": 8,
        "input_shape": (1, 8, 8),
    },
    "ranet_cifar_6": {},
    "ranet_cifar_8": {
        "step": 4,
        "step_mode": "even",
        "growth_factors": (4, 2, 1, 1),
        "bottleneck_factors": (4, 2, 1, 1),
        "scales": (1, 2, 3, 3),
    },
    "ranet_imagenet": {
        "num_classes": 1000,
        "step": 8,
        "step_mode": "even",
        "channels": 32,
        "growth": 16,
        "growth_factors": (4, 2, 2, 1),
        "bottleneck_factors": (4, 2, 2, 1),
        "scales": (1, 2, 3, 4),
        "stem": "imagenet",
        "head_channels": None,
        "input_shape": (3, 224, 224),
    },
}

_NETWORKS: Mapping[str, tuple[Callable[..., StagedModel], Options]] = {
    **{name: (MSDNet, options) for name, options in _MSDNETS.items()},
    **{name: (RANet, options) for name, options in _RANETS.items()},
}


def list_models() -> list[str]:
    """Names that :func:`create_model` knows."""
    return list(_NETWORKS)


def check_model_name(name: str) -> None:
    """Raise UserError, with the nearest known name, unless :func:`create_model` knows ``name``."""
    check_network(name)
    if "/" in name:
        check_backbone_name(name)


def create_model(name: str, **overrides: Any) -> StagedModel:
    """Build a network with exits.

    Args:
        name: one of :func:`list_models`, or ``timm/NAME``, ``torchvision/NAME`` or ``hf/NAME``.
        overrides: of a listed network, arguments of its class to use in place of the named size's, such as
            ``num_classes`` or ``input_shape`` (channels, height, width). Of a backbone, ``num_classes``,
            ``input_shape`` and ``pretrained`` as in
            :func:`~exitwise.models.backbones.libraries.create_backbone`, the rest as in
            :func:`~exitwise.models.backbones.attach.add_exits`.

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one) or unsuitable sizes.
    """
    check_model_name(name)
    if "/" in name:
        return _exited(name, **overrides)
    network, options = _NETWORKS[name]
    return network(**{**options, **overrides})


def _exited(
    name: str,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    pretrained: Pretrained = False,
    **options: Any,
) -> StagedModel:
    backbone = create_backbone(name, num_classes, input_shape, pretrained)
    if input_shape is None:
        size = data_config(name).image_size
        input_shape = (3, size, size)
    return add_exits(backbone, input_shape=input_shape, **options)
