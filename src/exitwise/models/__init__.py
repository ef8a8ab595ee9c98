"""Networks with exits, by name."""

from __future__ import annotations

from typing import Any

from exitwise.catalogue.models import MODELS
from exitwise.errors import UserError
from exitwise.kernels.inputs import example_of_tokens
from exitwise.models.backbones.attach import add_exits
from exitwise.models.backbones.libraries import Pretrained, check_backbone_name, create_backbone, data_config
from exitwise.models.cost import Cost, count_cost
from exitwise.models.msdnet import MSDNet
from exitwise.models.ranet import RANet
from exitwise.models.staged import Stage, StagedModel
from exitwise.settings.checks import check_network

__all__ = ["Cost", "MSDNet", "RANet", "Stage", "StagedModel", "count_cost", "create_model", "list_models"]


def list_models() -> list[str]:
    """Return the names that :func:`create_model` knows."""
    return list(MODELS)


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
            :func:`~exitwise.models.backbones.libraries.create_backbone`; ``tokens`` of a text, for a classifier of
            texts; the rest as in
            :func:`~exitwise.models.backbones.attach.add_exits`.

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one) or unsuitable sizes.
    """
    check_model_name(name)
    if "/" in name:
        return _exited(name, **overrides)
    entry = MODELS[name]
    return entry.load()(**{**entry.options, **overrides})


def _exited(
    name: str,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    pretrained: Pretrained = False,
    tokens: int | None = None,
    **options: Any,
) -> StagedModel:
    if tokens is not None:
        backbone = create_backbone(name, num_classes, None, pretrained, texts=True)
        positions = getattr(backbone.config, "max_position_embeddings", None) or tokens
        if tokens > positions:
            raise UserError(f"expected tokens of at most {positions}, as many as {name} has positions; got {tokens}")
        return add_exits(backbone, example=example_of_tokens(tokens), **options)
    backbone = create_backbone(name, num_classes, input_shape, pretrained)
    if input_shape is None:
        size = data_config(name).image_size
        input_shape = (3, size, size)
    return add_exits(backbone, input_shape=input_shape, **options)
