"""Errors whose message is meant for the user: one line, with what was expected and what came."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the user's hands is wrong: a wish, an argument of a call, data, a file.

    The command line prints it as one line and exits with 2.

    Other ValueErrors are of functions on arrays and parts of networks, whose arguments a program makes.
    """


class DataError(UserError):
    """A data set or an image is not what it should be."""


class ExitwiseWarning(UserWarning):
    """Work goes on, but the user should know something; the command line prints it as one line."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work where nothing is lost; the command line exits with 128 + its number.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.number = number


class PeerError(RuntimeError):
    """Another process of this job has failed, or has not answered within the timeout."""


def near_match(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name, or the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def in_a_line(error: BaseException) -> str:
    """Return an error's whole message as one line, without escape codes; its class's name if it has none."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).split()) or type(error).__name__
