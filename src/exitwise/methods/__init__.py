"""Training methods, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exitwise.methods.base import Method, Weighting
from exitwise.methods.schedules.backbone_first import BackboneFirst
from exitwise.methods.weights.meta_weighted import MetaWeighted
from exitwise.methods.weights.shared_step import SharedStep
from exitwise.methods.weights.uniform import Uniform

__all__ = [
    "BackboneFirst",
    "MetaWeighted",
    "Method",
    "SharedStep",
    "Uniform",
    "Weighting",
    "create_method",
    "list_methods",
]

_METHODS: dict[str, Callable[..., Method]] = {
    "uniform": Uniform,
    "meta-weighted": MetaWeighted.create,
    "meta-weighted-shared": SharedStep.create,
}


def list_methods() -> list[str]:
    """Names that :func:`create_method` knows."""
    return list(_METHODS)


def create_method(name: str, **options: Any) -> Method:
    """Build a training method.

    Args:
        name: ``uniform`` (see :class:`Uniform`) or ``meta-weighted`` (see :meth:`MetaWeighted.create`)
            or ``meta-weighted-shared`` (see :class:`SharedStep`).
        options: arguments of that class or function.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}; got {name!r}")
    return _METHODS[name](**options)
