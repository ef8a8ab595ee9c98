"""Preprocessing of an export, from what people have: timm's data configurations, processors and tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.manifest import TEXT_PARTS
from exitwise.deploy.texts import Texts
from exitwise.errors import UserError
from exitwise.kernels.inputs import named
from exitwise.models.lookups import lookups
from exitwise.models.staged import StagedModel

_PILLOW: dict[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def preprocessing_for(model: StagedModel, given: Any) -> Preprocessing | Texts | None:
    """Return the preprocessing of a network's inputs.

    Args:
        model: the network.
        given: a :class:`Preprocessing` of images, what timm's ``resolve_data_config`` gives, or an image processor of
            transformers; or :class:`~exitwise.deploy.texts.Texts`, or what that takes as tokenizer; None for none.

    Raises:
        UserError: if it is none of these, or of other inputs.
    """
    if given is None:
        return None
    images = _of_images(given)
    if images is not None:
        _check_images(model, images)
        return images
    if isinstance(model.example, Tensor) and model.example.dim() == 4:
        return image_preprocessing(given)
    texts = given if isinstance(given, Texts) else Texts(given)
    return _fitted(model, texts)


def image_preprocessing(given: Any) -> Preprocessing:
    """Return the preprocessing of images from a :class:`Preprocessing`, what timm's ``resolve_data_config`` gives, or
    an image processor of transformers.

    Raises:
        UserError: if it is none of these.
    """
    found = _of_images(given)
    if found is None:
        raise UserError(
            f"expected a Preprocessing, a data configuration of timm or an image processor; got {type(given).__name__}"
        )
    return found


def _of_images(given: Any) -> Preprocessing | None:
    if hasattr(given, "image_mean") and hasattr(given, "to_dict"):
        return _of_processor(given.to_dict())
    if isinstance(given, Mapping) and {"input_size", "mean", "std"} <= set(given):
        return _of_timm(given)
    return given if isinstance(given, Preprocessing) else None


def _of_processor(wish: Mapping[str, Any]) -> Preprocessing:
    size = wish.get("size") or {}
    shorter = size.get("shortest_edge") or size.get("height")
    crop = wish.get("crop_size") if wish.get("do_center_crop") else None
    side = crop["height"] if crop else shorter
    if not side or not shorter or (size.get("height") or side) != (size.get("width") or side):
        raise UserError(f"expected an image processor for square images; got one with size {size}")
    interpolation = _PILLOW.get(int(wish.get("resample") or 2), "bilinear")
    mean, std = tuple(wish["image_mean"]), tuple(wish["image_std"])
    return Preprocessing(side, mean, std, "resize", interpolation, side / shorter)


def _of_timm(wish: Mapping[str, Any]) -> Preprocessing:
    interpolation = wish.get("interpolation", "bilinear")
    if interpolation not in _PILLOW.values():
        raise UserError(f"expected interpolation bilinear, bicubic or nearest; got {interpolation}")
    crop = float(wish.get("crop_pct", 1.0))
    return Preprocessing(wish["input_size"][-1], tuple(wish["mean"]), tuple(wish["std"]), "resize", interpolation, crop)


def _check_images(model: StagedModel, wish: Preprocessing) -> None:
    shapes = [tuple(tensor.shape[1:]) for tensor in named(model.example).values()]
    takes = wish.channels, 1 if wish.signals else wish.image_size, wish.image_size
    if shapes != [takes] or 0 in wish.std or len(wish.std) != wish.channels:
        said = shapes[0] if len(shapes) == 1 else ", ".join(named(model.example))
        raise UserError(f"expected preprocessing for inputs of {said}; got {wish}")


def _fitted(model: StagedModel, texts: Texts) -> Texts:
    """Return texts that are cut where the network's positions end, if not before."""
    names = set(named(model.example))
    if not names <= set(TEXT_PARTS):
        raise UserError(
            f"a tokenizer makes {', '.join(TEXT_PARTS)}; this network takes {', '.join(names - {''}) or 'one tensor'}"
        )
    known = lookups(model)
    if known.ids is not None and texts.size > known.ids:
        raise UserError(f"expected a tokenizer of at most {known.ids} ids, as the network has; got one of {texts.size}")
    return texts if known.positions is None else texts.within(known.positions)
