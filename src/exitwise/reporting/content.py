"""What a report says, as plain numbers; how they are gathered and how they look is written elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitored import Monitored
from exitwise.exiting.paired import Paired
from exitwise.exiting.parts import Part
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.scores import Scores
from exitwise.exiting.temperatures import bound_of
from exitwise.reporting.changes import Changes
from exitwise.reporting.learning import Epoch
from exitwise.reporting.lines import Line
from exitwise.reporting.pictures import ClassFigures
from exitwise.reporting.reliability import Reliability
from exitwise.shown import Noun


@dataclass(frozen=True)
class Budget:
    """A run on the test split under one policy.

    Attributes:
        thresholds: K - 1, None where nobody leaves.
        point: accuracy, mean MACs, shares.
        seconds: mean time per image, by the measured time to each exit.
        paired: its answers beside the yardstick's.
        command: what calibrates the run so; empty for the calibration's own.
        share: of the full network's MACs that it is for; None where it is for something else.
    """

    thresholds: tuple[float | None, ...]
    point: OperatingPoint
    seconds: float
    paired: Paired
    command: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Cheapest:
    """The cheapest policy that loses little on the calibration images: in words, and what it does on test images."""

    sentence: str
    budget: Budget


class Rival(NamedTuple):
    """A network without early exits that a bench timed beside the run: seconds for one image, if known."""

    name: str
    accuracy: float
    macs: float
    seconds: float | None


@dataclass(frozen=True)
class ExitFigures:
    """One exit on all test images: its accuracy alone, the cost of leaving there, and whether it can be believed."""

    accuracy: float
    macs: int
    seconds: float
    temperature: float
    before: Reliability
    after: Reliability

    @property
    def bound(self) -> float | None:
        """Which bound the temperature lies at, if any."""
        return bound_of(self.temperature)


class ByClass(NamedTuple):
    """Names of the classes in the order of indices, and scores with what gave the answers: ``exit 1`` and so on, and
    ``as calibrated``."""

    names: list[str]
    scores: list[tuple[str, Scores]]

    @property
    def has_top(self) -> bool:
        """Return whether it was asked for the likeliest classes."""
        return any(scores.top is not None for _, scores in self.scores)


@dataclass(frozen=True)
class RunFigures:
    """The figures of one run in a report.

    Attributes:
        name: of its folder.
        settings: all of them.
        calibration: as recorded.
        lines: what it does on the test images, in words.
        yardstick: what losses are counted from.
        calibrated: what it does.
        cheapest: what may be chosen in its place; None where it is for a loss already.
        changes: images lost and won by it.
        rivals: of its bench.
        budgets: those of the calibration's table, by rising MACs.
        exits: K.
        groups: of test images under the calibrated policy, the largest loss first; none unless it was evaluated by
            groups.
        classes: under the calibrated policy, those that lose most first.
        weights: of some epochs: number, losses and weights of samples (see ``WeightSamples.rows``); empty without a
            record.
        learning: accuracies of some epochs; empty without a record.
        monitored: what deployed inputs looked like; None without a record.
        by_class: scores class by class; None in older records.
        gone: why the images that it was calibrated on cannot be looked at; empty where they can.
    """

    name: str
    settings: dict[str, Any]
    calibration: Calibration
    lines: list[str]
    yardstick: str
    calibrated: Budget
    cheapest: Cheapest | None
    changes: Changes
    rivals: list[Rival]
    budgets: list[Budget]
    exits: list[ExitFigures]
    groups: list[Part]
    classes: list[ClassFigures]
    weights: list[dict[str, Any]]
    learning: list[Epoch]
    monitored: Monitored | None = None
    by_class: ByClass | None = None
    gone: str = ""

    @property
    def elsewhere(self) -> str:
        """Return which images from elsewhere it was calibrated on; empty where on its own."""
        origin = self.calibration.origin
        return "" if origin is None or origin.data is None else str(origin)

    @property
    def is_fitted_on_a_part(self) -> bool:
        """Return whether temperatures, or more of the measure, come from the images that do not test a guarantee."""
        return self.calibration.guarantee is not None and self.calibration.policy.measure.temperatures is not None

    @property
    def alike(self) -> bool:
        """Return whether all samples of an exit had the same weight in every epoch."""
        return all(len(set(exit)) == 1 for row in self.weights for exit in zip(*row["weights"], strict=True))


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in nothing but the seed, as lines.

    Attributes:
        label: what sets them apart from the others.
        runs: their positions in the report.
        macs, seconds: accuracy against mean cost per image.
        exits: mean accuracy of each exit used alone.
    """

    label: str
    runs: list[int]
    macs: Line
    seconds: Line
    exits: list[float]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        runs: one by one.
        comparisons: the lines of the charts.
        sizes: samples of each split.
        machine: where times were measured, and with what.
        device: on which device.
        busy: the load there, where it was so high that times mean little; else empty.
        made: when, in UTC.
        version: of exitwise.
        noun: what samples are called.
    """

    runs: list[RunFigures]
    comparisons: list[Comparison]
    sizes: dict[str, int]
    machine: dict[str, Any]
    device: str
    busy: str
    made: str
    version: str
    noun: Noun = "images"
