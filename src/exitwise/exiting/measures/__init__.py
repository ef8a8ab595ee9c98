"""Measures of confidence, a file each; which there are stands in ``catalogue/measures.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exitwise.catalogue.lookup import find
from exitwise.catalogue.measures import MEASURES, USUAL_MEASURE
from exitwise.exiting.measures.base import Measure, Reading, State, rows

__all__ = ["Measure", "Reading", "State", "create_measure", "measure_from_json", "rows"]


def create_measure(
    name: str = USUAL_MEASURE,
    temperatures: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Measure:
    """Return a measure by its name.

    Args:
        name: one of the catalogue's.
        temperatures: of the exits; None for 1 throughout.
        parameters: what it was fitted to be.

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one), a temperature that is not positive,
            or parameters that it has not.
    """
    kind: type[Measure] = find(MEASURES, name, "measure").load()
    given = None if temperatures is None else tuple(map(float, temperatures))
    try:
        return kind(temperatures=given, **{key: _frozen(value) for key, value in (parameters or {}).items()})
    except TypeError as error:
        raise ValueError(f"expected the parameters of {name}; got {parameters}: {error}") from error


def measure_from_json(content: Mapping[str, Any]) -> Measure:
    """Return the measure that :meth:`Measure.to_json` wrote; other keys are left alone.

    Raises:
        KeyError, TypeError, ValueError: if it is not there, or no measure.
    """
    return create_measure(content["measure"], content["temperatures"], content.get("parameters"))


def _frozen(value: Any) -> Any:
    """Return lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
