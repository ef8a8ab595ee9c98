"""What a calibration is asked for: one wish, and how it is to be met. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypedDict

from exitwise.catalogue.measures import USUAL_MEASURE, MeasureName
from exitwise.exiting.risk import Risk
from exitwise.exiting.wish import WISHES, DropFrom, Each, Thresholding, check_wish


class Wishes(TypedDict, total=False):
    """What may be asked for by name: exactly one of the first six, and how it is to be met.

    Attributes:
        budget: share of the full network's MACs to spend on average; of a cascade, of its last network's alone.
        macs: mean multiply-accumulates per image.
        latency: mean seconds per image, one by one, as measured here and now with the exits' own cost: of a run or a
            network in eager mode where it lies, of a bundle in ONNX Runtime.
        p: budget parameter of the geometric family.
        proportions: share of images leaving at each exit.
        max_accuracy_drop: how much accuracy may be lost, in [0, 1], at least cost. The loss on the held-out samples is
            kept one standard error below that: of many thresholds that seem to keep a wish the cheapest is mostly a
            lucky one.
        guarantee: with max_accuracy_drop: the probability with which it is to hold (see
            :func:`~exitwise.control_risk`).
        guarantee_each: for what it is to hold: for each ``class``, or each ``group``; by default for the average of all
            images, of which a class or group may lose more.
        risk: what is guaranteed; ``accuracy-drop`` by default.
        drop_from: what a loss is counted from: ``full``, the full network, or ``best``, by default: where an earlier
            exit alone, or the measure's answer at one, is more accurate on the held-out samples, the best of them; with
            a guarantee, beyond chance on those that it does not test.
        thresholds: ``geometric``: of the paper's family; ``same``: one for all exits; ``searched``: those that do best
            on the calibration images; None: the measure's own family.
        measure: how confidence is read, and the answer: a name of the catalogue; None: max-probability, or a bundle's
            own, with temperatures if it has any. One that is fitted is fitted on all held-out samples, and thresholds
            are found on what it says of each when fitted without it.
        abstain_below: confidence where an image leaves, below which it is not answered ("I don't know"); None: none is
            too low, or of a bundle its own limit.
        answered_accuracy: in place of that: accuracy of what is answered, which ``guarantee`` is the probability of;
            as much as can be is answered then (see :func:`~exitwise.exiting.risk.control_answers`).
        temperature: whether to fit a temperature per exit first.
    """

    budget: float | None
    macs: float | None
    latency: float | None
    p: float | None
    proportions: Sequence[float] | None
    max_accuracy_drop: float | None
    guarantee: float | None
    guarantee_each: Each | None
    risk: Risk | None
    drop_from: DropFrom
    thresholds: Thresholding | None
    measure: MeasureName | None
    abstain_below: float | None
    answered_accuracy: float | None
    temperature: bool


@dataclass(frozen=True)
class Asked:
    """What a calibration is asked for; see :class:`Wishes`.

    Attributes:
        wish: the one wish, by its name.
    """

    wish: Mapping[str, Any]
    guarantee: float | None = None
    guarantee_each: Each | None = None
    risk: Risk | None = None
    drop_from: DropFrom = "best"
    thresholds: Thresholding | None = None
    measure: str = USUAL_MEASURE
    abstain_below: float | None = None
    answered_accuracy: float | None = None
    temperature: bool = False

    @classmethod
    def of(cls, wishes: Wishes, most: float = 1.0) -> Self:
        """Return it from what is asked for by name.

        Args:
            wishes: by name.
            most: budget that may be asked for; more than 1 of a cascade, whose last exit costs more than the network
                that shares are of.

        Raises:
            UserError: unless exactly one wish is given, within its range, and goes with the rest.
            TypeError: for a name that is none.
        """
        for name in wishes:
            if name not in Wishes.__annotations__:
                raise TypeError(f"got an unexpected keyword argument {name!r}")
        how = {name: value for name, value in wishes.items() if name not in WISHES and value is not None}
        return cls(check_wish(wishes, most), **how)  # type: ignore[arg-type]

    @property
    def risk_asked(self) -> Risk | None:
        """What is to be guaranteed of leaving early, if anything."""
        if self.guarantee is None or self.answered_accuracy is not None:
            return None
        return self.risk or "accuracy-drop"
