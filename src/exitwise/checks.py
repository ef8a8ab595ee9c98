"""What can be said of a user's input before torch is imported, so that mistakes show at once.

Each check is made here alone; what only a library or a device can tell is found later, still before data is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exitwise.backbone_names import check_defined
from exitwise.errors import DataError, UserError, near_match

MOST = 1e30
"""Largest number that anyone may give: float32 ends at 3.4e38."""

Thresholds = tuple[float | None, ...]
"""One per exit but the last; None where nobody can leave."""

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


def check_count(name: str, values: Sequence[float] | None, exits: int) -> None:
    """Raise UserError unless there are as many values as exits, if there are any."""
    if values is not None and len(values) != exits:
        raise UserError(f"expected {exits} {name}, one per exit; got {len(values)}: {list(values)}")


def check_p(p: float) -> None:
    """Raise ValueError unless the budget parameter is positive and finite."""
    if not (math.isfinite(p) and p > 0):
        raise ValueError(f"the budget parameter p must be a positive number; got {p}")


def check_drop(drop: float) -> None:
    """Raise ValueError unless it is a share of accuracy."""
    if not 0 <= drop <= 1:
        raise ValueError(f"max_accuracy_drop must be a share from 0 to 1, such as 0.01; got {drop}")


def check_open_share(name: str, value: float) -> None:
    """Raise ValueError unless a value lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}")


def check_wish(
    wishes: Mapping[str, Any], confidence: float | None, thresholds: str, risk: str | None
) -> dict[str, Any]:
    """The one wish of a calibration that is given, by its name.

    Args:
        wishes: ``budget``, ``macs``, ``latency``, ``p``, ``proportions`` and ``max_accuracy_drop``; None where
            not given.
        confidence, thresholds, risk: as in :func:`~exitwise.workflow.calibrate`.

    Raises:
        ValueError: unless exactly one is given, within its range, and goes with the rest.
    """
    given = {name: value for name, value in wishes.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"expected exactly one of {', '.join(wishes)}; got {', '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if confidence is not None and name != "max_accuracy_drop":
        raise UserError("confidence goes with max_accuracy_drop, which it guarantees")
    if risk is not None and confidence is None:
        raise UserError(f"a risk is what confidence guarantees; got {risk} without confidence")
    if thresholds == "searched" and (name in ("p", "proportions") or confidence is not None):
        raise UserError(
            f"searched thresholds are for a budget or an accuracy; got {name if confidence is None else 'confidence'}"
        )
    if name == "budget" and not 0 < value <= 1:
        raise UserError(
            "a budget must lie between the first exit's cost and the full network's, above 0 and at most 1; "
            f"got {value:g}"
        )
    if name == "p":
        check_p(value)
    if name == "max_accuracy_drop":
        check_drop(value)
    if confidence is not None:
        check_open_share("max_accuracy_drop with confidence", value)
        check_open_share("confidence", confidence)
    return given


def finite_thresholds(thresholds: Sequence[float | None]) -> Thresholds:
    """Thresholds as floats.

    Raises:
        ValueError: for one that is not a finite number.
    """
    if any(t is not None and not abs(t) <= MOST for t in thresholds):
        raise ValueError(f"thresholds must be finite numbers, or None where nobody can leave; got {list(thresholds)}")
    return tuple(None if t is None else float(t) for t in thresholds)
