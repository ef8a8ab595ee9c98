"""Figures and results as text, the same in a terminal, in a notebook, in a string and in the report."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

STRING_WIDTH = 120
"""Columns of a result that is turned into a string."""

Noun = Literal["images", "texts", "signals"]
"""What samples are called."""


class Shown:
    """A result that prints well. A subclass says how by :meth:`__rich__`."""

    def __rich__(self) -> RenderableType:
        """Return what rich shows."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is shown")

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=STRING_WIDTH, markup=False, emoji=False, highlight=False).print(self)
        return file.getvalue().rstrip()

    def _repr_mimebundle_(self, include: Sequence[str] = (), exclude: Sequence[str] = (), **_: Any) -> dict[str, str]:
        """Return what a notebook shows."""
        from rich.jupyter import JupyterMixin

        return JupyterMixin._repr_mimebundle_(self, include, exclude)  # type: ignore[arg-type]


def say(message: str) -> None:
    """Say what a long call does next, in a line for people, beside what a program prints."""
    print(message, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return a text without what steers a terminal, as a name of a file may have: escaped in its place."""
    text = text.encode(errors="backslashreplace").decode()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def pasteable(*words: object) -> str:
    """Return a command that a shell takes as it is, whatever is in its words."""
    return printable(shlex.join(map(str, words)))


def macs(value: float) -> str:
    """Return multiply-accumulates as text: ``58.0M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """Return a share as text: ``93.1 %``."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Return a difference of shares as text: ``1 point``, ``0.5 points``."""
    return f"{100 * value:.3g} {'point' if value == 0.01 else 'points'}"


def shares(values: Sequence[float]) -> str:
    """Return the shares of images that leave at each exit as text: ``40/30/20/10 %``."""
    return "/".join(f"{100 * value:.0f}" for value in values) + " %"


def milliseconds(seconds: float) -> str:
    """Return a time as text: ``1.23 ms``."""
    return f"{1000 * seconds:.3g} ms"


def text_of(value: Any) -> str:
    """Return a setting's value as a reader would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "unset" if value is None else str(value)
