"""What can be said of a user's input before torch is imported, so that mistakes show at once.

Each check is made here alone; what only a library or a device can tell is found later, still before data is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from exitwise.catalogue.backbones import LIBRARIES, check_defined
from exitwise.catalogue.lookup import find
from exitwise.catalogue.models import MODELS
from exitwise.catalogue.sources import MANIFEST, SHARDS, SOURCES, is_named, path_data
from exitwise.errors import DataError, UserError, near_match
from exitwise.shown import Noun


def check_network(name: str) -> None:
    """Raise UserError, with the nearest known name, unless it is a network's or can be a backbone's."""
    if "/" in name:
        check_backbone(name)
    else:
        find(MODELS, name, "model")


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
    """Raise DataError unless it is a data set's name, a folder, or a table."""
    path = Path(name_or_path)
    if is_named(name_or_path) or path_data(name_or_path):
        return
    if name_or_path and path.exists():
        suffixes = ", ".join((*MANIFEST.suffixes, *SHARDS.suffixes))
        raise DataError(f"expected a folder of images, a table or a shard of them ({suffixes}); {path} is a file")
    hint = f"; {near_match(name_or_path, SOURCES)}" if path.name == name_or_path else ""
    raise DataError(f"expected a data set's name or a folder of images; there is no {name_or_path or repr('')}{hint}")


def check_texts(data: str) -> None:
    """Raise DataError unless there is a table that texts may be read from."""
    if data in SOURCES or not MANIFEST.is_at(Path(data)):
        raise DataError(
            f"expected a table of texts and labels ({', '.join(MANIFEST.suffixes)}) for a network of texts; got "
            f"{data or 'none'}"
        )


def check_not_moved(run: Path, data: str, noun: Noun) -> None:
    """Raise UserError unless a run's data has a name, or is still where it lay."""
    if not is_named(data) and not Path(data).exists():
        raise UserError(f"the {noun} of {run} lay at {data}, where nothing is now: say with --data where they lie")


def is_of_signals(data: str) -> bool:
    """Return whether a data set has signals in place of images."""
    return data in SOURCES and SOURCES[data].signals


def check_shape(data: str, channels: int, image_size: int | None) -> None:
    """Raise DataError if a named data set's images are not of this shape; ``image_size`` None is any."""
    if data not in SOURCES:
        return
    source = SOURCES[data]
    if source.signals and image_size != source.side:
        size = "any, for augment resize" if image_size is None else image_size
        raise DataError(f"{data} has signals of {source.side} values; got image_size {size}")
    if channels != source.channels:
        raise DataError(f"{data} has {source.channels} channels; got mean and std of {channels}")
    if image_size not in (None, source.side):
        raise DataError(f"{data} has images of {source.side}x{source.side} pixels; got image_size {image_size}")


def check_weights(pretrained: str) -> None:
    """Raise UserError unless these first weights are ``hub``, ``none`` or there."""
    if pretrained not in ("hub", "none") and not Path(pretrained).exists():
        raise UserError(
            f"expected pretrained as hub, none, a file of weights or another run; found nothing at {pretrained}"
        )


def is_run_folder(path: Path) -> bool:
    """Return whether a run's settings are at ``path``."""
    return (path / "config.yaml").is_file()


def check_run_folder(path: Path) -> None:
    """Raise UserError unless a run's settings are at ``path``."""
    if not is_run_folder(path):
        found = (
            "found a bundle: give the run it was exported from" if (path / "manifest.json").is_file() else "found none"
        )
        raise UserError(f"expected a run folder with config.yaml at {path}; {found}")
