"""A calibration from what the exits said of held-out samples. Imports no torch.

Knows neither networks nor where the samples came from; never to be called with test data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from exitwise.budgets import check_budget, check_count, check_proportions, exit_proportions
from exitwise.deploy.asked import Asked
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import Monitor, Reference
from exitwise.deploy.origin import Origin
from exitwise.errors import DataError, ExitwiseWarning, UserError
from exitwise.exiting.calibration import (
    MARGIN,
    calibrate_accuracy,
    calibrate_macs,
    calibrate_proportions,
    loss_of,
)
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.measures import Measure
from exitwise.exiting.outcome import TOLERANCE, Outcome, Yardstick, best_yardstick
from exitwise.exiting.outputs import Outputs, operate
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.risk import control_answers, control_risk, design_and_test, least_samples
from exitwise.exiting.rule import Family
from exitwise.exiting.search import ThresholdSearch
from exitwise.exiting.table import budget_table
from exitwise.exiting.temperatures import bound_of
from exitwise.exiting.wish import Each, missed
from exitwise.shown import Noun, percent, points

FEW = 100
"""Calibration images, below which chance moves shares and accuracy by ten points."""


class CalibrationWarning(ExitwiseWarning):
    """Calibration images, or the network's confidences on them, that thresholds are not to be built on."""


class Recorded(NamedTuple):
    """What the exits said of held-out samples.

    Attributes:
        logits: (N, K, C).
        targets: class indices (N).
        classes: their names.
        seed: of the divisions of the samples.
        groups: that of each sample, where they are known.
        origin: which samples they are, where more is known than how many.
    """

    logits: NDArray[Any]
    targets: NDArray[np.int64]
    classes: Sequence[str]
    seed: int = 0
    groups: Sequence[str] | None = None
    origin: Origin | None = None

    @classmethod
    def of_numbered_classes(cls, logits: NDArray[Any], targets: NDArray[np.int64]) -> Self:
        """Return it for classes without names, which are called by their numbers."""
        return cls(logits, targets, [str(label) for label in range(logits.shape[-1])])

    @property
    def noun(self) -> Noun:
        """What they are called."""
        return "images" if self.origin is None else self.origin.noun

    def parts(self, each: Each) -> NDArray[np.int64]:
        """Return which class or group each sample is of, by index.

        Raises:
            UserError: for groups, where they are not known.
        """
        if each == "class":
            return self.targets
        if self.groups is None:
            raise UserError("a guarantee for each group needs groups; got none")
        return np.unique(list(self.groups), return_inverse=True)[1]

    def check(self) -> None:
        """Raise DataError unless there are enough samples, of every class, with outputs that are numbers."""
        check_samples(self.targets, self.classes, self.logits.shape[1], self.noun)
        self.check_finite()

    def check_finite(self) -> None:
        """Raise DataError unless outputs are numbers."""
        broken = ~np.isfinite(self.logits).all(axis=2)
        if broken.any():
            exit = int(broken.any(axis=0).argmax())
            raise DataError(
                f"expected outputs that are numbers; those of exit {exit + 1} are not finite for "
                f"{int(broken[:, exit].sum())} of {len(self.targets)} {self.noun}"
            )


def check_samples(targets: NDArray[np.int64], classes: Sequence[str], exits: int, noun: Noun) -> None:
    """Raise DataError unless there are enough samples, of every class."""
    if len(targets) < exits:
        raise DataError(f"calibration needs at least {exits} {noun}, one per exit; got {len(targets)}")
    counts = np.bincount(targets, minlength=len(classes)).tolist()
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise DataError(f"calibration needs {noun} of every class; there is none of {missing[0]!r}")


def drift_of(calibration: Calibration, held: Recorded) -> str | None:
    """Return how samples differ from those of a former calibration of the same network, as they leave by it; None if
    they don't, or it says nothing of its own."""
    policy = calibration.policy
    left = Outputs.from_logits(held.logits, held.targets, policy.measure).under(policy)
    monitor = Monitor.of_all(policy.exits, calibration.reference, len(left.exits) + 1, held.noun)
    monitor.add(left.exits, left.confidences, np.array(calibration.exit_macs)[left.exits], 0.0, policy.thresholds)
    return monitor.drift()


def warn_if_few(samples: int, noun: Noun) -> None:
    """Raise a :class:`CalibrationWarning` for so few samples that chance moves what is found on them."""
    if samples < FEW:
        points = round(98 / samples**0.5)
        warnings.warn(
            f"{samples} calibration {noun} are few: shares and accuracies may be {points} points off by chance",
            CalibrationWarning,
            stacklevel=3,
        )


class Costs(NamedTuple):
    """What leaving costs.

    Attributes:
        exit_macs: multiply-accumulates to each exit.
        full_macs: what shares of them are of.
        exit_seconds: measured time to each exit, where a latency is asked for.
    """

    exit_macs: tuple[int, ...]
    full_macs: int
    exit_seconds: tuple[float, ...] | None = None

    def check(self, wish: Mapping[str, Any]) -> None:
        """Raise UserError unless a wish for a cost is within reach."""
        if "latency" in wish:
            assert self.exit_seconds is not None
            latency, least, most = wish["latency"], self.exit_seconds[0], self.exit_seconds[-1]
            if not least <= latency <= most:
                raise UserError(
                    "a latency must lie between that of leaving at the first exit and the full network's, here "
                    f"{1000 * least:.3g} to {1000 * most:.3g} ms; got {1000 * latency:.3g} ms"
                )
        elif "budget" in wish or "macs" in wish:
            check_budget(self.target(wish), self.exit_macs, self.full_macs)

    def target(self, wish: Mapping[str, Any]) -> float:
        """Return the mean cost that a wish is for."""
        ((name, value),) = wish.items()
        return float(value * self.full_macs if name == "budget" else value)


def calibrated(
    asked: Asked, held: Recorded, costs: Costs, standard: NDArray[np.int64] | None = None, *, network: str = ""
) -> Calibration:
    """Return thresholds for a wish, found on held-out samples.

    Args:
        asked: the wish.
        held: outputs on the samples; see :meth:`Recorded.check`.
        costs: of leaving.
        standard: answers (N) that drops of accuracy count from; None: those that ``drop_from`` says.
        network: fingerprint of the weights.

    Raises:
        UserError: for a wish that is out of reach.
    """
    logits, targets, classes, seed = held[:4]
    exits = logits.shape[1]
    # What tests a guarantee must not have shaped what it tests.
    seen = None
    if asked.guarantee is not None and (exits > 1 or asked.answered_accuracy is not None):
        _check_enough(asked, held)
        seen = design_and_test(len(targets), seed)[0]
    fitted = fit_and_read(
        asked.measure, logits, targets, costs.exit_macs, temperature=asked.temperature, on=seen, seed=seed
    )
    reading, outputs = fitted.measure, Outputs(fitted.confidences, fitted.predictions, targets)
    _warn_of_bounds(reading)
    own, yardstick = logits.argmax(-1), Yardstick(exits - 1)
    if standard is None and asked.drop_from == "best" and asked.risk != "disagreement":
        chosen_on, surely = slice(None) if seen is None else seen, seen is not None
        yardstick = best_yardstick(own[chosen_on], outputs.predictions[chosen_on], targets[chosen_on], surely=surely)
    if standard is None:
        standard = yardstick.answers(own, outputs.predictions)
    if asked.answered_accuracy is not None and seen is not None:
        own_part = Outputs(*(each[seen] for each in outputs))
        found = _found(asked, own_part, costs, standard[seen], reading.family, held)
        found = _with_answers(asked, found, outputs, seed)
    else:
        found = _found(asked, outputs, costs, standard, reading.family, held)
        found = found._replace(policy=found.policy.abstaining(asked.abstain_below))
    policy, searched = found.policy, asked.thresholds == "searched"
    tolerance = asked.wish.get("max_accuracy_drop", TOLERANCE)
    point, left = operate(outputs, policy, costs.exit_macs), outputs.under(policy)
    miss = missed(
        asked.wish,
        found.proportions,
        point,
        len(targets),
        costs.full_macs,
        costs.exit_seconds,
        has_temperatures=asked.temperature,
        on_a_part=seen is not None,
    )
    if miss and not searched:
        warnings.warn(miss, CalibrationWarning, stacklevel=3)
    return Calibration(
        policy.read_by(reading),
        dict(asked.wish),
        tuple(point.shares if searched else found.proportions),
        costs.exit_macs,
        point._asdict(),
        "",
        costs.exit_seconds,
        found.promise,
        Reference.of(left.exits, left.confidences, exits, policy.thresholds),
        budget_table(
            outputs.confidences,
            outputs.correct,
            costs.exit_macs,
            searched=searched,
            family=found.family,
            full_macs=costs.full_macs,
        ),
        full_macs=costs.full_macs,
        network=network,
        outcome=Outcome.of(left, targets, own, standard, yardstick, classes, held.groups, tolerance, costs.exit_macs),
        thresholding=asked.thresholds,
        drop_from=asked.drop_from,
        origin=held.origin or Origin(len(targets)),
    )


class _Found(NamedTuple):
    """Thresholds, the family that they are of or start from, its proportions, and what is guaranteed."""

    policy: ExitPolicy
    family: Family
    proportions: Sequence[float]
    promise: dict[str, Any] | None = None


def _found(
    asked: Asked, outputs: Outputs, costs: Costs, standard: NDArray[np.int64], usual: Family, held: Recorded
) -> _Found:
    ((name, value),) = asked.wish.items()
    exits = outputs.confidences.shape[1]
    if exits == 1:
        warnings.warn("the network has one exit: there is nothing to calibrate", CalibrationWarning, stacklevel=4)
        return _Found(ExitPolicy([]), "geometric", [1.0])
    if name in ("p", "proportions"):
        check_count("exit proportions", value if name == "proportions" else None, exits)
        proportions = check_proportions(value, exits) if name == "proportions" else exit_proportions(value, exits)
        return _Found(calibrate_proportions(outputs.confidences, proportions), "geometric", proportions)
    family: Family = usual if asked.thresholds is None else "same" if asked.thresholds == "same" else "geometric"
    risk = asked.risk_asked
    if risk is not None:
        assert asked.guarantee is not None
        parts = held.parts(asked.guarantee_each) if asked.guarantee_each else None
        result = control_risk(
            *outputs,
            value,
            asked.guarantee,
            risk=risk,
            seed=held.seed,
            family=family,
            full=standard,
            parts=parts,
            exit_costs=costs.exit_macs,
        )
        promise = {
            "risk": risk,
            "each": asked.guarantee_each,
            "probability": asked.guarantee,
            "holds": result.holds,
            "tested": result.tested,
            "mean_loss": result.mean_loss,
        }
        return _Found(result.policy, family, result.proportions, promise)
    costs.check(asked.wish)
    confidences, correct = outputs.confidences, outputs.correct
    each = costs.exit_macs if costs.exit_seconds is None else costs.exit_seconds
    search = ThresholdSearch(confidences, correct, each) if asked.thresholds == "searched" else None
    if name == "max_accuracy_drop":
        right = standard == outputs.targets
        policy, shares = calibrate_accuracy(confidences, correct, each, value, family, right, MARGIN)
        if search is not None:
            _, error = loss_of(policy.exit_of(confidences), correct, right)
            policy = search.least_cost(float(right.mean()) - value + MARGIN * error, policy)
    else:
        target = costs.target(asked.wish)
        policy, shares = calibrate_macs(confidences, each, target, family)
        if search is not None:
            policy = search.best_accuracy(target, policy)
    return _Found(policy, family, shares)


def _with_answers(asked: Asked, found: _Found, outputs: Outputs, seed: int) -> _Found:
    """Return thresholds with the confidence to answer from, by which an accuracy of answers is guaranteed."""
    assert asked.answered_accuracy is not None
    assert asked.guarantee is not None
    left = outputs.under(found.policy)
    right = left.predictions == outputs.targets
    result = control_answers(left.confidences, right, asked.answered_accuracy, asked.guarantee, seed=seed)
    promise = {
        "risk": "answers",
        "accuracy": asked.answered_accuracy,
        "probability": asked.guarantee,
        **result._asdict(),
    }
    return found._replace(policy=found.policy.abstaining(promise.pop("abstain_below")), promise=promise)


def _check_enough(asked: Asked, held: Recorded) -> None:
    assert asked.guarantee is not None
    if asked.answered_accuracy is not None:
        least = least_samples(1 - asked.answered_accuracy, asked.guarantee, "disagreement")
        if len(held.targets) < least:
            raise UserError(
                f"expected at least {least} held-out {held.noun} for a guarantee that "
                f"{percent(asked.answered_accuracy)} of what is answered is right, with probability "
                f"{asked.guarantee:.12g}, and more where something is wrong; got {len(held.targets)}"
            )
        return
    assert asked.risk_asked is not None
    tolerance, each = asked.wish["max_accuracy_drop"], asked.guarantee_each
    least = least_samples(tolerance, asked.guarantee, asked.risk_asked)
    parts = held.parts(each) if each else np.zeros(len(held.targets), np.int64)
    samples = int(np.bincount(parts).min())
    if samples < least:
        images = f"held-out {held.noun} of each {each}" if each else f"held-out {held.noun}"
        raise UserError(
            f"expected at least {least} {images} for a guarantee of {points(tolerance)} with probability "
            f"{asked.guarantee:.12g}, and more where something is lost; got {samples}"
        )


def _warn_of_bounds(measure: Measure) -> None:
    """Warn of temperatures that only the bounds of the search stopped."""
    for k, temperature in enumerate(measure.temperatures or ()):
        if (bound := bound_of(temperature)) is not None and not measure.fits_temperatures:
            warnings.warn(
                f"the temperature of exit {k + 1} is at its bound {bound:g}: its confidences say little",
                CalibrationWarning,
                stacklevel=4,
            )
