"""A calibration made anew for the same wish, where the network has changed. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitwise.deploy.asked import Asked
from exitwise.deploy.calibrating import Costs, Recorded, calibrated
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.exiting.outcome import Yardstick


def check_repeatable(calibration: Calibration) -> None:
    """Raise UserError for a wish that cannot be repeated for another network."""
    wish = ", ".join(calibration.budget)
    if calibration.guarantee is not None or wish not in ("budget", "macs", "p", "proportions", "max_accuracy_drop"):
        raise UserError(
            "expected a calibration for a budget, MACs, p, proportions or an accuracy, which eight bits are calibrated "
            f"for anew; got {'a guarantee' if calibration.guarantee else wish or 'thresholds without a wish'}"
        )


def yardstick_of(calibration: Calibration) -> Yardstick:
    """Return whose answers a calibration's losses are counted from; the full network's where it does not say."""
    return Yardstick(calibration.policy.exits - 1) if calibration.outcome is None else calibration.outcome.yardstick


def standard_of(calibration: Calibration, logits: NDArray[Any]) -> NDArray[np.int64]:
    """Return the answers that a calibration's losses are counted from, from logits (N, K, C) of its own network."""
    yardstick = yardstick_of(calibration)
    read = calibration.policy.measure.read_all(logits)[1] if not yardstick.own else logits.argmax(-1)
    return yardstick.answers(logits.argmax(-1), read)


def calibrated_anew(calibration: Calibration, held: Recorded, standard: NDArray[np.int64], what: str) -> Calibration:
    """Return a calibration for the same wish on other logits, such as those of the same network in eight bits.

    Args:
        calibration: whose wish, and kind of measure and thresholds.
        held: outputs on held-out samples.
        standard: answers (N) that drops count from, those of the former network.
        what: what the logits are of, in an error.

    Raises:
        UserError: for a wish that cannot be repeated (:func:`check_repeatable`), or if the last exit alone is less
            accurate than the wish allows.
    """
    check_repeatable(calibration)
    measure, drop = calibration.policy.measure, calibration.budget.get("max_accuracy_drop")
    if drop is not None:
        read = measure.read_all(held.logits)[1]
        ends = [(answers[:, -1] == held.targets).mean() for answers in (held.logits.argmax(-1), read)]
        lost = (standard == held.targets).mean() - max(ends)
        if lost > drop:
            raise UserError(
                f"expected {what} to lose at most {100 * drop:.3g} points of held-out "
                f"accuracy, as calibrated; the last exit alone loses {100 * lost:.3g}: nothing was written"
            )
    asked = Asked(
        calibration.budget,
        thresholds=calibration.thresholding,
        measure=measure.name,
        abstain_below=calibration.policy.abstain_below,
        temperature=measure.temperatures is not None,
    )
    costs = Costs(calibration.exit_macs, calibration.full_macs)
    made = calibrated(
        asked, held, costs, standard, network=calibration.network and f"{what}, from {calibration.network}"
    )
    return replace(made, checkpoint=calibration.checkpoint, samples=calibration.samples)
