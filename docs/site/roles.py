"""Docstrings name things as ``:func:`name```; the site shows such a name as code."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?(?:[\w.]*\.)?(\w+)`")


class Roles(griffe.Extension):
    """Turns roles of Sphinx into code in every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")
