"""What can be said of a user's input before torch is imported, so that mistakes show at once.

Each check is made here alone; what only a library or a device can tell is found later, still before data is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from exitwise.catalogue.backbones import check_defined
from exitwise.errors import DataError, UserError, near_match

DATA_SETS = {"digits": (1, 8), "cifar10": (3, 32), "cifar100": (3, 32)}
"""Data sets that need no path: channels and side of their images."""

NETWORKS = {
    "msdnet_small": 4,
    "msdnet_cifar_narrow": 5,
    "msdnet_cifar_5": 5,
    "msdnet_cifar_7": 7,
    "msdnet_cifar_even_7": 7,
    "msdnet_cifar_even_11": 11,
    "msdnet_imagenet_step4": 5,
    "msdnet_imagenet_step6": 5,
    "msdnet_imagenet_step7": 5,
    "ranet_small": 2,
    "ranet_cifar_6": 6,
    "ranet_cifar_8": 8,
    "ranet_imagenet": 8,
}
"""Networks that have exits of their own, and how many."""

LIBRARIES = ("timm", "torchvision", "hf")
BACKBONE_EXITS = 4
"""Exits on a backbone of these libraries where no number is given."""


def check_network(name: str) -> None:
    """Raise UserError, with the nearest known name, unless it is a network's or can be a backbone's."""
    if "/" in name:
        check_backbone(name)
    elif name not in NETWORKS:
        raise UserError(f"unknown model {name!r}; {near_match(name, NETWORKS)}")


def check_backbone(name: str) -> None:
    """Raise UserError unless it names a library and a network of it."""
    library, _, rest = name.partition("/")
    if library not in LIBRARIES or not rest:
        raise UserError(f"expected timm/NAME, torchvision/NAME or hf/NAME; got {name!r}")
    check_defined(library, rest)


def check_device(name: str) -> None:
    """Raise UserError unless it can be a device's name."""
    if not re.fullmatch(r"auto|[a-z]+(:\d+)?", name) or name.split(":")[0] in ("gpu", "tpu"):
        raise UserError(f"expected a device of this machine, such as cpu or cuda; {name!r} is not available")


def check_data(name_or_path: str) -> None:
    """Raise DataError unless it is a data set's name or a folder."""
    path = Path(name_or_path)
    if name_or_path in DATA_SETS or (name_or_path and path.is_dir()):
        return
    if name_or_path and path.exists():
        raise DataError(f"expected a folder of images; {path} is a file")
    hint = f"; {near_match(name_or_path, DATA_SETS)}" if path.name == name_or_path else ""
    raise DataError(f"expected a data set's name or a folder of images; there is no {name_or_path or repr('')}{hint}")


def check_shape(data: str, channels: int, image_size: int | None) -> None:
    """Raise DataError if a named data set's images are not of this shape; ``image_size`` None is any."""
    if data not in DATA_SETS:
        return
    has_channels, side = DATA_SETS[data]
    if channels != has_channels:
        raise DataError(f"{data} has {has_channels} channels; got mean and std of {channels}")
    if image_size not in (None, side):
        raise DataError(f"{data} has images of {side}x{side} pixels; got image_size {image_size}")


def check_weights(pretrained: str) -> None:
    """Raise UserError unless these first weights are ``hub``, ``none`` or there."""
    if pretrained not in ("hub", "none") and not Path(pretrained).exists():
        raise UserError(f"expected pretrained as hub, none or a file of weights; found nothing at {pretrained}")


def check_run_folder(path: Path) -> None:
    """Raise UserError unless a run's settings are at ``path``."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"expected a run folder with config.yaml at {path}; found none")
