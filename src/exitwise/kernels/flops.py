"""Counting the multiply-accumulates of what is computed."""

from __future__ import annotations

from typing import Any, Self

from torch.utils.flop_counter import FlopCounterMode


class _NoModules:
    """In the place of what follows the modules that are called, which fails on a parameter as a module's input."""

    parents = frozenset({"Global"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def flop_counter() -> Any:
    """Return a context that counts floating-point operations in all, two per multiply-accumulate, whoever calls."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter
