"""A calibration made anew for the same wish, where the network has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.evaluation.outputs import Outputs, anytime, operate, right_alone
from exitwise.exiting.calibration import MARGIN, calibrate_accuracy, calibrate_macs, calibrate_proportions
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.table import budget_table


def check_repeatable(calibration: Calibration) -> None:
    """Raise UserError for a wish that cannot be repeated for another network."""
    wish = ", ".join(calibration.budget)
    if calibration.guarantee is not None or wish not in ("budget", "macs", "p", "proportions", "max_accuracy_drop"):
        raise UserError(
            "expected a calibration for a budget, MACs, p, proportions or an accuracy, which eight bits are calibrated "
            f"for anew; got {'a guarantee' if calibration.guarantee else wish or 'thresholds without a wish'}"
        )


def calibrated_anew(
    calibration: Calibration, logits: NDArray[Any], targets: NDArray[np.int64], full: NDArray[np.bool_], what: str
) -> Calibration:
    """Return a calibration for the same wish on other logits, such as those of the same network in eight bits.

    Args:
        calibration: whose wish, and kind of measure.
        logits: of held-out samples, (N, K, C).
        targets: class indices (N).
        full: whether the network that drops count from is right on each sample, bool (N).
        what: what the logits are of, in an error.

    Raises:
        UserError: for a wish that cannot be repeated (:func:`check_repeatable`), or if the last exit alone is less
            accurate than the wish allows.
    """
    check_repeatable(calibration)
    costs, wish, former = calibration.exit_macs, calibration.budget, calibration.policy.measure
    fitted = fit_and_read(former.name, logits, targets, costs, temperature=former.temperatures is not None)
    measure, outputs = fitted.measure, Outputs(fitted.confidences, fitted.predictions, targets)
    proportions: Sequence[float] = calibration.proportions
    if len(costs) == 1:
        policy = ExitPolicy([])
    elif "max_accuracy_drop" in wish:
        lost = full.mean() - max(right_in_full(logits, targets).mean(), anytime(outputs)[-1])
        if lost > wish["max_accuracy_drop"]:
            raise UserError(
                f"expected {what} to lose at most {100 * wish['max_accuracy_drop']:.3g} points of held-out "
                f"accuracy, as calibrated; the last exit alone loses {100 * lost:.3g}: nothing was written"
            )
        policy, proportions = calibrate_accuracy(
            outputs.confidences, outputs.correct, costs, wish["max_accuracy_drop"], measure.family, full, MARGIN
        )
    elif "p" in wish or "proportions" in wish:
        policy = calibrate_proportions(outputs.confidences, proportions)
    else:
        target = wish["macs"] if "macs" in wish else wish["budget"] * calibration.full_macs
        policy, proportions = calibrate_macs(outputs.confidences, costs, target, measure.family)
    left = outputs.under(policy)
    return replace(
        calibration,
        network=calibration.network and f"{what}, from {calibration.network}",
        policy=policy.read_by(measure),
        proportions=tuple(proportions),
        expected=operate(outputs, policy, costs)._asdict(),
        reference=Reference.of(left.exits, left.confidences, len(costs), policy.thresholds),
        table=budget_table(
            outputs.confidences, outputs.correct, costs, family=measure.family, full_macs=calibration.full_macs
        ),
    )


def right_in_full(logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return on which samples the last exit's own answer is right."""
    return right_alone(logits, targets, -1)
