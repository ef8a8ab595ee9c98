"""Backbones of timm, torchvision and Hugging Face transformers by name: ``timm/resnet50``, ``hf/google/vit-base-...``.

Knows how each library builds, sizes and describes a classifier, and nothing of exits. A library is imported when one
of its names is used.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from torch import Tensor, nn

from exitwise.catalogue.extras import needing_extras
from exitwise.errors import UserError, in_a_line, near_match
from exitwise.models.backbones.weights import load_weights
from exitwise.settings.checks import check_backbone
from exitwise.storage.tensors import read_weights

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Pretrained = bool | str | Path
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataConfig(NamedTuple):
    """How a backbone wants its images.

    Attributes:
        image_size: side in pixels.
        mean, std: per channel, of pixels in [0, 1].
        interpolation: for resizing.
        crop: share of the resized image's shorter side that the centre crop keeps at evaluation.
    """

    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    crop: float = 0.875


def check_backbone_name(name: str) -> None:
    """Raise UserError unless the library is installed and knows the backbone, as far as can be told offline."""
    library, rest = _parts(name)
    library.check(rest)


def data_config(name: str) -> DataConfig:
    """Return how a backbone wants its images, from the library's own records.

    Raises:
        UserError: for an unknown name.
    """
    library, rest = _parts(name)
    library.check(rest)
    try:
        with _quiet_hub():
            return library.data_config(rest)
    except (OSError, RuntimeError) as error:
        raise UserError(f"expected to find how {name} wants its images; {in_a_line(error)}") from error


def create_backbone(
    name: str,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    pretrained: Pretrained = False,
    *,
    texts: bool = False,
) -> nn.Module:
    """Build a classifier.

    Args:
        name: library and name, such as ``timm/resnet50``, ``torchvision/vit_b_16``, ``hf/microsoft/resnet-50``; after
            ``hf/`` also a local folder.
        num_classes: number of classes C; the library's own if None.
        input_shape: (channels, height, width); the library's own if None. Networks that are built for a size get it.
        pretrained: True: the library's own weights, from its hub; a path: weights from a local file, its shards'
            index, or a folder with one of them. A classifier for another number of classes starts near zero.
        texts: whether a classifier of texts is wanted, in place of one of images.

    Raises:
        UserError: for an unknown name, or weights that cannot be had or do not fit.
    """
    library, rest = _parts(name)
    library.check(rest)
    try:
        with _quiet_hub():
            network = library.create(rest, num_classes, input_shape, False, texts)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name} could not be built: {in_a_line(error)}") from error
    if pretrained is True:
        load_weights(network, _from_hub(name, input_shape, texts), name, num_classes)
    elif pretrained is not False:
        load_weights(network, read_weights(pretrained), str(pretrained), num_classes)
    return network


def tokenizer_of(name: str) -> Any:
    """Return the tokenizer of a network of texts.

    Raises:
        UserError: for an unknown name, or one without a tokenizer.
    """
    library, rest = _parts(name)
    library.check(rest)
    if library is not _LIBRARIES["hf"]:
        raise UserError(f"expected hf/NAME, a network of texts; got {name}")
    try:
        with _quiet_hub():
            return _import("transformers").AutoTokenizer.from_pretrained(rest, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"expected the tokenizer of {name}; {in_a_line(error)}") from error


def _from_hub(name: str, input_shape: Sequence[int] | None, texts: bool) -> dict[str, Tensor]:
    library, rest = _parts(name)
    try:
        with _quiet_hub():
            return library.create(rest, None, input_shape, True, texts).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"expected to download the weights of {name}; {in_a_line(error)} (pretrained takes a local file too, or "
            "none for random weights)"
        ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Within this context the hub's client keeps its retries to itself, and transformers what it loads."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    bars: Any = getattr(sys.modules.get("transformers"), "logging", None)
    shown = bars is not None and bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()


class _Library(NamedTuple):
    check: Callable[[str], None]
    create: Callable[[str, int | None, Sequence[int] | None, bool, bool], nn.Module]
    data_config: Callable[[str], DataConfig]


def _parts(name: str) -> tuple[_Library, str]:
    check_backbone(name)
    prefix, _, rest = name.partition("/")
    return _LIBRARIES[prefix], rest


def _import(module: str) -> Any:
    with needing_extras("this model"):
        return __import__(module, fromlist=["_"])


# timm


def _timm_check(name: str) -> None:
    timm = _import("timm")
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"unknown model 'timm/{name}'; {near_match(name, timm.list_models())[:200]}")


def _timm_create(
    name: str, classes: int | None, shape: Sequence[int] | None, pretrained: bool, texts: bool
) -> nn.Module:
    if texts:
        raise UserError(f"expected hf/NAME for texts; got timm/{name}")
    timm = _import("timm")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if shape is not None:
        options["in_chans"] = shape[0]
        if timm.get_pretrained_cfg(name) and timm.get_pretrained_cfg(name).fixed_input_size:
            options["img_size"] = tuple(shape[1:])
    return timm.create_model(name, pretrained=pretrained, **options)


def _timm_data(name: str) -> DataConfig:
    data = _import("timm.data")
    timm = _import("timm")
    config = timm.get_pretrained_cfg(name)
    resolved = data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    return DataConfig(
        resolved["input_size"][1],
        tuple(resolved["mean"]),
        tuple(resolved["std"]),
        _interpolation(resolved["interpolation"]),
        float(resolved["crop_pct"]),
    )


# torchvision


def _torchvision_check(name: str) -> None:
    models = _import("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"unknown model 'torchvision/{name}'; {near_match(name, known)[:200]}")


def _torchvision_create(
    name: str, classes: int | None, shape: Sequence[int] | None, pretrained: bool, texts: bool
) -> nn.Module:
    if texts:
        raise UserError(f"expected hf/NAME for texts; got torchvision/{name}")
    models = _import("torchvision.models")
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"init_weights": True} if "init_weights" in inspect.signature(builder).parameters else {}
    if shape is not None and shape[0] != 3:
        raise UserError(f"torchvision/{name} takes images of 3 channels; got {shape[0]}")
    if shape is not None and name.startswith("vit_"):
        options["image_size"] = shape[1]
    if shape is not None and name.startswith("maxvit"):
        options["input_size"] = tuple(shape[1:])
    if classes is not None:
        options["num_classes"] = classes
    return models.get_model(name, weights="DEFAULT" if pretrained else None, **options)


def _torchvision_data(name: str) -> DataConfig:
    models = _import("torchvision.models")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    return DataConfig(
        size, tuple(preset.mean), tuple(preset.std), _interpolation(preset.interpolation.value), size / resized
    )


# Hugging Face transformers


def _hf_check(name: str) -> None:
    _import("transformers")
    if (name.startswith((".", "/")) or Path(name).is_dir()) and not (Path(name) / "config.json").is_file():
        raise UserError(f"expected a folder with config.json at {name}; found none")


def _hf_create(name: str, classes: int | None, shape: Sequence[int] | None, pretrained: bool, texts: bool) -> nn.Module:
    transformers = _import("transformers")
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if classes is not None:
        config.num_labels = classes
    if shape is not None:
        config.num_channels = shape[0]
        if hasattr(config, "image_size"):
            config.image_size = shape[1]
    kind = transformers.AutoModelForSequenceClassification if texts else transformers.AutoModelForImageClassification
    if pretrained:
        return kind.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, use_safetensors=True, trust_remote_code=False
        )
    return kind.from_config(config)


def _hf_data(name: str) -> DataConfig:
    transformers = _import("transformers")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError):
        return DataConfig()
    size = processor.get("crop_size") or processor.get("size") or {}
    side = size.get("height") or size.get("shortest_edge") or 224
    crop = float(processor.get("crop_pct") or 1.0)
    modes: dict[int, Interpolation] = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
    return DataConfig(
        side,
        tuple(processor.get("image_mean") or IMAGENET_MEAN),
        tuple(processor.get("image_std") or IMAGENET_STD),
        modes.get(int(processor.get("resample") or 2), "bilinear"),
        crop,
    )


def _interpolation(name: str) -> Interpolation:
    """Of those that work on tensors, the nearest: Lanczos becomes bicubic, a random choice bilinear."""
    if name == "lanczos":
        return "bicubic"
    return cast("Interpolation", name) if name in get_args(Interpolation) else "bilinear"


_LIBRARIES = {
    "timm": _Library(_timm_check, _timm_create, _timm_data),
    "torchvision": _Library(_torchvision_check, _torchvision_create, _torchvision_data),
    "hf": _Library(_hf_check, _hf_create, _hf_data),
}
