"""Libraries whose classifiers can be given exits, and the names of timm's and torchvision's.

Names are read from the libraries' source, since importing them takes seconds, and only to say early that there is no
such network; what there is, the libraries say (``models/backbones/libraries.py``).
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from exitwise.catalogue.entry import Entry
from exitwise.errors import UserError, near_match

LIBRARIES = ("timm", "torchvision", "hf")
BACKBONE_EXITS = 4
"""Exits on a backbone of these libraries where no number is given."""

IMAGES = Entry(
    "images",
    "how a backbone wants its images, by its library's records",
    "exitwise.models.backbones.libraries:data_config",
)

_DEFINITIONS = {
    "timm": ("models/*.py", re.compile(r"^@register_model\ndef (\w+)", re.MULTILINE)),
    "torchvision": ("models/*.py", re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)),
}
"""Where each library defines its classifiers, and how."""


def check_defined(library: str, name: str) -> None:
    """Raise UserError, with the nearest name, if a library neither defines nor mentions a network of that name.

    Says nothing of a library that is not installed, or whose source does not look as expected. What follows a dot
    names weights. Former names are mentioned, and taken.
    """
    spec = find_spec(library)
    if library not in _DEFINITIONS or spec is None or spec.origin is None:
        return
    pattern, definition = _DEFINITIONS[library]
    sources = [path.read_text(errors="replace") for path in Path(spec.origin).parent.glob(pattern)]
    names = sorted({found for source in sources for found in definition.findall(source)})
    wanted = name.split(".")[0]
    quoted = (f"'{wanted}'", f'"{wanted}"')
    if names and wanted not in names and not any(text in source for source in sources for text in quoted):
        raise UserError(f"unknown model '{library}/{name}'; {near_match(wanted, names)[:200]}")
