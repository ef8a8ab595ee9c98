"""What a calibration may be asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exitwise.budgets import check_drop, check_open_share, check_p
from exitwise.errors import UserError


def check_wish(
    wishes: Mapping[str, Any], confidence: float | None, thresholds: str, risk: str | None
) -> dict[str, Any]:
    """The one wish of a calibration that is given, by its name.

    Args:
        wishes: ``budget``, ``macs``, ``latency``, ``p``, ``proportions`` and ``max_accuracy_drop``; None where
            not given.
        confidence, thresholds, risk: as in :func:`~exitwise.workflows.train.calibrate`.

    Raises:
        ValueError: unless exactly one is given, within its range, and goes with the rest.
    """
    given = {name: value for name, value in wishes.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"expected exactly one of {', '.join(wishes)}; got {', '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if confidence is not None and name != "max_accuracy_drop":
        raise UserError("confidence goes with max_accuracy_drop, which it guarantees")
    if risk is not None and confidence is None:
        raise UserError(f"a risk is what confidence guarantees; got {risk} without confidence")
    if thresholds == "searched" and (name in ("p", "proportions") or confidence is not None):
        raise UserError(
            f"searched thresholds are for a budget or an accuracy; got {name if confidence is None else 'confidence'}"
        )
    if name == "budget" and not 0 < value <= 1:
        raise UserError(
            "a budget must lie between the first exit's cost and the full network's, above 0 and at most 1; "
            f"got {value:g}"
        )
    if name == "p":
        check_p(value)
    if name == "max_accuracy_drop":
        check_drop(value)
    if confidence is not None:
        check_open_share("max_accuracy_drop with confidence", value)
        check_open_share("confidence", confidence)
    return given
