"""What a calibration may be asked for, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

from exitwise.budgets import check_confidence, check_drop, check_open_share, check_p
from exitwise.errors import UserError
from exitwise.exiting.point import OperatingPoint
from exitwise.shown import macs, milliseconds, percent, points

Thresholding = Literal["geometric", "same", "searched"]
"""Which kind of thresholds is asked for."""

Each = Literal["class", "group"]
"""Parts of the images, for each of which a guarantee may be asked."""

DropFrom = Literal["best", "full"]
"""What a loss of accuracy is counted from."""

SLACK = 0.05
"""By how much of the full network's MACs, or of the samples, a wish may be missed before it is said."""

OVER = 0.01
"""By how much of the full network's MACs a budget may be exceeded before it is said."""

WISHES = ("budget", "macs", "latency", "p", "proportions", "max_accuracy_drop")
"""Of which a calibration is asked for one."""


def check_wish(asked: Mapping[str, Any], most: float = 1.0) -> dict[str, Any]:
    """Return the one wish of a calibration that is given, by its name.

    Args:
        asked: by name, as :class:`~exitwise.deploy.asked.Wishes` has it; None where not given.
        most: budget that may be asked for.

    Raises:
        UserError: unless exactly one is given, within its range, and goes with the rest.
    """
    guarantee, thresholds, risk = (asked.get(name) for name in ("guarantee", "thresholds", "risk"))
    below, accuracy = asked.get("abstain_below"), asked.get("answered_accuracy")
    check_confidence(below)
    if below is not None and accuracy is not None:
        raise UserError("expected abstain_below, or an answered_accuracy that it is found for; got both")
    if accuracy is not None:
        check_open_share("answered_accuracy", accuracy)
        if guarantee is None:
            raise UserError(
                "an answered_accuracy is guaranteed: expected the probability (guarantee), such as 0.95; got none"
            )
    if thresholds is not None and thresholds not in get_args(Thresholding):
        raise UserError(f"thresholds must be geometric, same or searched; got {thresholds!r}")
    if (drop_from := asked.get("drop_from", "best")) not in get_args(DropFrom):
        raise UserError(f"drop_from must be {' or '.join(get_args(DropFrom))}; got {drop_from!r}")
    if (each := asked.get("guarantee_each")) is not None:
        if each not in get_args(Each):
            raise UserError(f"guarantee_each must be {' or '.join(get_args(Each))}; got {each!r}")
        if guarantee is None:
            raise UserError(f"guarantee_each says for what a guarantee holds; got {each} without one")
    given = {name: asked[name] for name in WISHES if asked.get(name) is not None}
    if len(given) != 1:
        raise UserError(f"expected exactly one of {', '.join(WISHES)}; got {', '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if name != "proportions" and (isinstance(value, bool) or not isinstance(value, Real)):
        raise UserError(f"expected a number as {name}; got {value!r}")
    if guarantee is not None and name != "max_accuracy_drop" and accuracy is None:
        raise UserError("a guarantee goes with max_accuracy_drop or answered_accuracy")
    if accuracy is not None:
        others = {"max_accuracy_drop": name == "max_accuracy_drop", "risk": risk, "guarantee_each": each}
        if wrong := [other for other, there in others.items() if there]:
            raise UserError(f"one thing is guaranteed at a time; got answered_accuracy with {wrong[0]}")
    if risk is not None and guarantee is None:
        raise UserError(f"a risk is what a guarantee is about; got {risk} without one")
    if thresholds == "searched" and (name in ("p", "proportions") or (guarantee is not None and accuracy is None)):
        raise UserError(
            f"searched thresholds are for a budget or an accuracy; got {name if guarantee is None else 'guarantee'}"
        )
    if thresholds == "same" and name in ("p", "proportions"):
        raise UserError(f"one threshold for all exits is for a budget or an accuracy; got {name}")
    if name == "budget" and not (0 < value <= most and math.isfinite(value)):
        raise UserError(
            "a budget must lie between the first exit's cost and the full network's, above 0 and at most 1; "
            f"got {value:g}"
        )
    if name == "p":
        check_p(value)
    if name == "max_accuracy_drop":
        check_drop(value)
    if guarantee is not None:
        if accuracy is None:
            check_open_share("max_accuracy_drop with a guarantee", value)
        check_open_share("guarantee", guarantee)
    return given


def worded(wish: Mapping[str, Any], yardstick: str) -> str:
    """Return a wish in words, such as ``within 50 % of MACs``; ``yardstick`` is what accuracy is counted from."""
    ((name, value),) = wish.items()
    match name:
        case "max_accuracy_drop":
            return f"cheapest within {points(value)} of {yardstick}"
        case "budget":
            return f"within {percent(value)} of MACs"
        case "macs":
            return f"within {macs(value)} MACs"
        case "latency":
            return f"within {milliseconds(value)}"
        case "p":
            return f"at p = {value:g}"
    return "at the proportions asked for"


def as_calibrated(intro: str) -> str:
    """Return a wish in words, where other samples than those of its calibration say what came of it."""
    return f"calibrated as {intro}"


def missed(
    wish: Mapping[str, Any],
    proportions: Sequence[float],
    point: OperatingPoint,
    samples: int,
    full_macs: float,
    exit_seconds: Sequence[float] | None = None,
    *,
    has_temperatures: bool = False,
    on_a_part: bool = False,
) -> str | None:
    """Return by how much a wish is missed on the samples that it was calibrated on, in a line; None if it is not.

    Args:
        wish: what was asked for.
        proportions: what thresholds were made for.
        point: what they do.
        samples: how many there are; a difference of two of them is none.
        full_macs: what shares of MACs are of.
        exit_seconds: time to leave at each exit, where one is asked for.
        on_a_part: whether thresholds were found on a part of the samples.
        has_temperatures: whether confidences are divided by temperatures already.
    """
    ((name, value),) = wish.items()
    slack = max(SLACK, 2 / samples)
    if name in ("budget", "macs"):
        asked, spent = value if name == "budget" else value / full_macs, point.macs / full_macs
        if spent - asked > max(OVER, 2 / samples):
            return (
                f"{percent(asked)} of MACs were asked for and {percent(spent)} are spent: thresholds were found on a "
                "part of the samples, so that the others could test something"
            )
        if asked - spent <= slack:
            return None
        what = f"{percent(asked)} of MACs were asked for and {percent(spent)} are spent"
    elif name == "latency" and exit_seconds is not None:
        spent = sum(share * each for share, each in zip(point.shares, exit_seconds, strict=True))
        if value - spent <= slack * exit_seconds[-1]:
            return None
        what = f"{milliseconds(value)} were asked for and {milliseconds(spent)} are spent"
    elif name in ("p", "proportions"):
        gaps = [abs(share - part) for share, part in zip(point.shares, proportions, strict=True)]
        if max(gaps) <= slack:
            return None
        exit = gaps.index(max(gaps))
        what = f"{percent(proportions[exit])} were to leave at exit {exit + 1}, and {percent(point.shares[exit])} do"
    else:
        return None
    if on_a_part:
        return f"{what}: thresholds were found on a part of the samples, so that the others could test something"
    return (
        f"{what}: too many samples have the same confidence, which no threshold divides; "
        f"{'' if has_temperatures else 'temperatures (--temperature) or '}another measure (--measure) may"
    )
