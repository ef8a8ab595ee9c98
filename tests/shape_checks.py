"""Switches on the checks of the shapes and types that annotations state."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self, get_origin

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import config, install_import_hook

import exitwise

CHECKED = ("exitwise.weighting", "exitwise.exiting", "exitwise.models.staged")

# ExitPolicy hands everything on to rule.py, which is checked; a search calls both ten thousands of times.
LEFT_OUT = "exitwise.exiting.policy"

# What these get is checked by themselves, with an error for users that tests ask for.
THEMSELVES = ("EarlyExitRunner.__call__", "EarlyExitRunner._check")

MOST = 100
"""Calls of a function that are checked within a test: a search makes hundreds of thousands, all alike."""

CALLS = Counter()
"""How often each function was called in this test."""

# An int may stand where a float is asked for, as for type checkers.
_CONF = BeartypeConf(is_pep484_tower=True)


def check(function):
    """Return the function with its arguments and its result checked.

    Choices between words are left to the functions, as the above; ``Self`` is for checkers of whole classes.
    """
    if function.__qualname__ in THEMSELVES:
        return function
    for name, hint in function.__annotations__.items():
        if hint is Self or get_origin(hint) is Literal:
            function.__annotations__[name] = Any
    return beartype(function, conf=_CONF)


def switch_on():
    """Check calls of the modules' functions; they must not have been imported yet."""
    early = [name for name in sys.modules if name.startswith(CHECKED)]
    assert not early, f"imported before they could be checked: {early}"
    exiting = (path.stem for path in (Path(exitwise.__file__).parent / "exiting").iterdir() if path.stem[0] != "_")
    modules = [*CHECKED, *(f"exitwise.exiting.{name}" for name in exiting)]
    modules = [name for name in modules if name not in ("exitwise.exiting", LEFT_OUT)]
    install_import_hook(modules, "shape_checks.check")
    # What torch.compile or torch.export traces is traced as it is without checks, which would break its graph.
    type(config).jaxtyping_disable = property(
        lambda self: torch.compiler.is_compiling() or _is_enough(sys._getframe(1).f_locals.get("fn"))
    )


def _is_enough(function):
    """Whether a function was called so often in this test that it is checked no more."""
    CALLS[function] += 1
    return function is not None and CALLS[function] > MOST
