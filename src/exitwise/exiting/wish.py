"""What a calibration may be asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exitwise.budgets import check_drop, check_open_share, check_p
from exitwise.errors import UserError


def check_wish(
    wishes: Mapping[str, Any], guarantee: float | None, thresholds: str | None, risk: str | None
) -> dict[str, Any]:
    """Return the one wish of a calibration that is given, by its name.

    Args:
        wishes: ``budget``, ``macs``, ``latency``, ``p``, ``proportions`` and ``max_accuracy_drop``; None where
            not given.
        guarantee, thresholds, risk: as in :func:`~exitwise.workflows.calibrate.calibrate`.

    Raises:
        ValueError: unless exactly one is given, within its range, and goes with the rest.
    """
    if thresholds not in (None, "geometric", "same", "searched"):
        raise UserError(f"thresholds must be geometric, same or searched; got {thresholds!r}")
    given = {name: value for name, value in wishes.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"expected exactly one of {', '.join(wishes)}; got {', '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if guarantee is not None and name != "max_accuracy_drop":
        raise UserError("a guarantee goes with max_accuracy_drop")
    if risk is not None and guarantee is None:
        raise UserError(f"a risk is what a guarantee is about; got {risk} without one")
    if thresholds == "searched" and (name in ("p", "proportions") or guarantee is not None):
        raise UserError(
            f"searched thresholds are for a budget or an accuracy; got {name if guarantee is None else 'guarantee'}"
        )
    if thresholds == "same" and name in ("p", "proportions"):
        raise UserError(f"one threshold for all exits is for a budget or an accuracy; got {name}")
    if name == "budget" and not 0 < value <= 1:
        raise UserError(
            "a budget must lie between the first exit's cost and the full network's, above 0 and at most 1; "
            f"got {value:g}"
        )
    if name == "p":
        check_p(value)
    if name == "max_accuracy_drop":
        check_drop(value)
    if guarantee is not None:
        check_open_share("max_accuracy_drop with a guarantee", value)
        check_open_share("guarantee", guarantee)
    return given
