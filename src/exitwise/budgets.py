"""Budgets as shares of samples, multiply-accumulates and milliseconds: arithmetic on plain numbers, without torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from exitwise.errors import UserError

MOST = 1e30
"""Largest number that anyone may give: float32 ends at 3.4e38."""

AUTHORS_BUDGETS: tuple[float, ...] = tuple(i / 20 for i in range(1, 40))
"""The authors' 39 budget parameters p = i / 20: from most samples early to mostly late."""


def exit_proportions(p: float, exits: int) -> list[float]:
    """Shares of samples leaving at exits 1..K: ``p^k / sum_j p^j`` (Han et al., ECCV 2022;
    docs/method.md, eq. 4).

    Small p sends most samples out early; p = 1 is uniform; p > 1 sends most to the end.

    Raises:
        UserError: if ``p`` is not a positive finite number or ``exits`` is below 1.
    """
    check_p(p)
    if exits < 1:
        raise UserError(f"exits must be at least 1; got {exits}")
    return geometric_proportions(math.log(p), exits)


def geometric_proportions(log_p: float, exits: int) -> list[float]:
    """:func:`exit_proportions` from the logarithm of p, for any finite value."""
    highest = max(0.0, (exits - 1) * log_p)
    shares = [math.exp(k * log_p - highest) for k in range(exits)]
    total = math.fsum(shares)
    return [share / total for share in shares]


def check_proportions(proportions: Sequence[float], exits: int) -> list[float]:
    """Return the proportions as a list, checked: K of them, none negative, summing to 1 (within 1e-6).

    Raises:
        UserError: naming what was expected and what came.
    """
    values = [float(q) for q in proportions]
    if len(values) != exits:
        raise UserError(f"expected {exits} exit proportions, one per exit; got {len(values)}: {values}")
    if any(not math.isfinite(q) or q < 0 for q in values):
        raise UserError(f"exit proportions must be numbers of 0 or more; got {values}")
    if abs(sum(values) - 1) > 1e-6:
        raise UserError(f"exit proportions must sum to 1; got {values}, which sum to {sum(values):.6g}")
    return values


def proportions_for_macs(macs: float, exit_macs: Sequence[float]) -> list[float]:
    """Return the geometric proportions whose expected cost ``sum_k q_k * exit_macs[k]`` is ``macs``.

    Args:
        macs: the budget, in multiply-accumulates per sample on average.
        exit_macs: cost of leaving at each exit, cheap to dear, earlier heads included.

    Raises:
        UserError: if the budget lies below the first exit's cost or above the last one's.
    """
    check_budget(macs, exit_macs)
    exits = len(exit_macs)
    if macs <= exit_macs[0]:
        return [1.0] + [0.0] * (exits - 1)
    if macs >= exit_macs[-1]:
        return [0.0] * (exits - 1) + [1.0]

    def expected(log_p: float) -> float:
        return sum(q * cost for q, cost in zip(geometric_proportions(log_p, exits), exit_macs, strict=True))

    return geometric_proportions(bisect_log_p(lambda log_p: expected(log_p) <= macs), exits)


def bisect_log_p(affordable: Callable[[float], bool], low: float = -60.0, high: float = 60.0) -> float:
    """Return the largest log p within [low, high] for which ``affordable(log_p)`` holds, to about 1e-13.

    Cost grows with p, so ``affordable`` is true below some point and false above.
    """
    for _ in range(60):
        middle = (low + high) / 2
        if affordable(middle):
            low = middle
        else:
            high = middle
    return low


def check_budget(macs: float, exit_macs: Sequence[float], full_macs: float | None = None) -> None:
    """Raise UserError unless ``macs`` lies between the first exit's cost and the last one's.

    Args:
        macs: the budget.
        exit_macs: cost of leaving at each exit.
        full_macs: what shares in the message are of; the last exit's cost if None.
    """
    first, last = exit_macs[0], exit_macs[-1]
    full = last if full_macs is None else full_macs
    dearest, whole = ("full network", "full") if full == last else ("last exit", "the last network alone")
    if not first <= macs <= last:
        raise UserError(
            f"a budget must lie between the first exit's cost and the {dearest}'s, "
            f"{first:.7g} to {last:.7g} MACs ({math.ceil(1000 * first / full) / 1000:.3f} to "
            f"{math.floor(1000 * last / full) / 1000:g} of {whole}); got {macs:.7g} MACs ({macs / full:.3g})"
        )


def exit_count(n: int, proportion: float) -> int:
    """Return how many of ``n`` samples a proportion takes: the floor of their product.

    A product within 1e-9 below an integer counts as that integer (0.29 * 100 is 28.999999999999996).
    """
    return math.floor(n * proportion + 1e-9)


def check_count(name: str, values: Sequence[float] | None, exits: int) -> None:
    """Raise UserError unless there are as many values as exits, if there are any."""
    if values is not None and len(values) != exits:
        raise UserError(f"expected {exits} {name}, one per exit; got {len(values)}: {list(values)}")


def check_whole(name: str, value: Any, least: int) -> int:
    """Return a whole number.

    Raises:
        UserError: if it is none, or below the least.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"expected a whole number as {name}, at least {least}; got {value!r}") from None
    if number < least:
        raise UserError(f"expected {name} of at least {least}; got {number}")
    return number


def check_p(p: float) -> None:
    """Raise UserError unless the budget parameter is positive and finite."""
    if not (math.isfinite(p) and p > 0):
        raise UserError(f"the budget parameter p must be a positive number; got {p}")


def check_drop(drop: float) -> None:
    """Raise UserError unless it is a share of accuracy."""
    if not 0 <= drop < 1:
        raise UserError(f"max_accuracy_drop is a share of accuracy below 1, such as 0.01 for a point; got {drop:g}")


def check_confidence(below: float | None) -> None:
    """Raise UserError unless a confidence to abstain below is one, or None."""
    if below is not None and not 0 <= below <= 1:
        raise UserError(f"abstain_below is a confidence from 0 to 1; got {below:g}")


def check_open_share(name: str, value: float) -> None:
    """Raise UserError unless a value lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise UserError(f"{name} must lie between 0 and 1; got {value}")


def parse_macs(text: str) -> float:
    """Return multiply-accumulates from text: ``20M`` gives 2e7.

    Raises:
        UserError: if the text is no positive amount.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kKMG]?)\s*(?:MACs)?\s*", text)
    try:
        if match:
            return float(match[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]
    except ValueError:
        pass
    raise UserError(f"expected MACs as a number with k, M or G, such as 20M; got {text!r}")


def parse_seconds(text: str) -> float:
    """Return seconds from text: ``5ms`` gives 0.005.

    Raises:
        UserError: if the text is no positive time with a unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s)\s*", text)
    if match and float(match[1]) > 0:
        return float(match[1]) * {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
    raise UserError(f"expected a time with its unit (us, ms or s), such as 5ms; got {text!r}")


def parse_numbers(texts: list[str], name: str, such_as: str = "0.5,0.3,0.2") -> list[float]:
    """Return numbers given apart or with commas; ``such_as`` is said where one is none.

    Raises:
        UserError: if one is no number.
    """
    parts = [part for text in texts for part in text.split(",") if part]
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise UserError(f"expected numbers for {name}, such as {such_as}; got {' '.join(texts)!r}") from error
