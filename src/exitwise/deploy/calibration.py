"""What running a network early takes: thresholds, the measure that they are of, costs, and how calibration images left.

A run folder and a bundle keep it as the same record. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, get_args

from exitwise.deploy.monitor import Reference
from exitwise.deploy.origin import Origin
from exitwise.deploy.parts_table import parts_table
from exitwise.errors import UserError
from exitwise.exiting.measures import measure_from_json
from exitwise.exiting.outcome import TOLERANCE, Outcome
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Thresholds, finite_thresholds
from exitwise.exiting.table import Budgeted, line_for
from exitwise.exiting.wish import DropFrom, Thresholding, worded
from exitwise.shown import Noun, Shown, percent, points
from exitwise.storage.record import Record

if TYPE_CHECKING:
    from rich.console import RenderableType


class Network(Protocol):
    """A network that a calibration may be of, such as a :class:`~exitwise.models.staged.StagedModel`."""

    @property
    def exit_macs(self) -> tuple[int, ...]: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Calibration(Shown):
    """A calibrated exit policy and what it was calibrated for.

    Attributes:
        policy: the thresholds.
        budget: what was asked for, such as ``{"macs": 2e7}`` or ``{"p": 0.75}``.
        proportions: the exit proportions that the thresholds were found for.
        exit_macs: cost of leaving at each exit.
        expected: accuracy, macs and shares on the calibration split; empty for thresholds that were not calibrated.
        checkpoint: name of the checkpoint whose outputs were calibrated.
        exit_seconds: measured time to leave at each exit, if the budget was a latency.
        guarantee: what holds with which probability, if one was asked for.
        reference: how the calibration images left, to compare others with.
        table: thresholds for other budgets, by the same measure; empty in records of before it.
        samples: fingerprints of the samples of a loader that it was made on; they are not written.
        full_macs: what shares of cost are of: the last exit's cost or, of a cascade, that of its last network alone.
        network: fingerprint of the weights that it was made for; empty where that is not known (older records).
        thresholding: which kind of thresholds was asked for; None: the measure's own, or not known (older records).
        outcome: what is lost on the calibration images, and for whom; None where that is not known (older records).
        drop_from: what losses were asked to be counted from.
        origin: the samples that it was made on; None where that is not known (older records).
    """

    policy: ExitPolicy
    budget: dict[str, Any]
    proportions: tuple[float, ...]
    exit_macs: tuple[int, ...]
    expected: dict[str, Any]
    checkpoint: str
    exit_seconds: tuple[float, ...] | None = None
    guarantee: dict[str, Any] | None = None
    reference: Reference | None = None
    table: tuple[Budgeted, ...] = ()
    samples: frozenset[int] = field(default=frozenset(), compare=False, repr=False)
    full_macs: int = 0
    network: str = ""
    outcome: Outcome | None = None
    thresholding: Thresholding | None = None
    drop_from: DropFrom = "best"
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if not self.full_macs and self.exit_macs:
            object.__setattr__(self, "full_macs", self.exit_macs[-1])

    @classmethod
    def of(cls, policy: ExitPolicy, exit_macs: Sequence[int]) -> Calibration:
        """Return thresholds that come from elsewhere, with what leaving at each exit costs."""
        return cls(policy, {}, (), tuple(exit_macs), {}, "")

    def check_costs(self, exit_macs: Sequence[int]) -> None:
        """Raise UserError unless it is of a network whose exits cost this much."""
        if self.exit_macs != tuple(exit_macs):
            raise UserError("expected the calibration of this network; got that of one with other costs")

    def has_weights_of(self, network: Network) -> bool:
        """Return whether it was made for a network's weights, or does not say for which."""
        return not self.network or self.network == network.fingerprint

    def check_network(self, network: Network) -> None:
        """Raise UserError unless it is of this network, whose costs are counted and whose weights are read now."""
        self.check_costs(network.exit_macs)
        if not self.has_weights_of(network):
            raise UserError("expected the calibration of this network; got that of one with other weights")

    def thresholds_for(self, budget: float) -> Thresholds:
        """Return the thresholds of the table for a share of the full network's MACs.

        Raises:
            UserError: where the table has none.
        """
        return line_for(self.table, budget).thresholds

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        tables = []
        if self.outcome is not None and self.outcome.groups:
            tables.append(
                parts_table(self.outcome.groups, "group", self._yardstick, self.exit_macs, self.full_macs, self.noun)
            )
        return Group(*self.lines(), *tables)

    def lines(self) -> list[str]:
        """Return the thresholds, what they do on the calibration images, and what is guaranteed, in words."""
        thresholds = ", ".join("none leaves" if t is None else f"{t:.4f}" for t in self.policy.thresholds)
        early = "threshold of exit 1" if self.policy.exits == 2 else f"thresholds of exits 1 to {self.policy.exits - 1}"
        lines = [f"{early}: {thresholds}"] if self.policy.thresholds else []
        if self.policy.abstain_below is not None:
            lines.append(f"not answered: confidences below {self.policy.abstain_below:.4f}")
        if not self.expected:
            return lines
        point = OperatingPoint(**self.expected)
        figures = point.figures(self.full_macs)
        if self.outcome is not None:
            lines = self.outcome.lines(self.intro, point, self.full_macs, f"held-out {self.noun}", self._time) + lines
        lines += [f"{name} on the calibration {self.noun}: {figure}" for name, figure in figures]
        if self.exit_seconds is not None and self._time is not None:
            mean = 1000 * self._time * self.exit_seconds[-1]
            lines.append(f"mean time on the calibration {self.noun}: {mean:.3g} ms, one by one on this machine")
        if self.guarantee is not None:
            lines.append(self.promise(self.guarantee))
        if self.origin is not None and self.origin.data is not None:
            lines.append(f"calibrated on {self.origin}")
        return lines

    @property
    def _time(self) -> float | None:
        """Share of the full network's time that it takes on the calibration images; None where no time was measured."""
        if self.exit_seconds is None or not self.expected:
            return None
        times = zip(self.expected["shares"], self.exit_seconds, strict=True)
        return float(sum(share * seconds for share, seconds in times) / self.exit_seconds[-1])

    @property
    def is_kept_promise(self) -> bool:
        """Whether it guarantees what was to be guaranteed, if anything was."""
        return self.guarantee is None or self.guarantee["holds"]

    @property
    def tolerance(self) -> float:
        """Accuracy that may be lost: what was asked for, or a point."""
        return float(self.budget.get("max_accuracy_drop", TOLERANCE))

    @property
    def intro(self) -> str:
        """What it is for, in words."""
        if not self.budget:
            return "by these thresholds"
        said, promise = worded(self.budget, self._yardstick), self.guarantee or {}
        if promise.get("holds") and promise["risk"] != "answers":
            each = promise.get("each")
            said += f", guaranteed {f'for each {each}' if each else 'on average'}"
        return said

    @property
    def noun(self) -> Noun:
        """What the samples that it was made on are called."""
        return "images" if self.origin is None else self.origin.noun

    @property
    def _yardstick(self) -> str:
        return "the full network" if self.outcome is None else self.outcome.yardstick.name(self.policy.exits)

    def promise(self, guarantee: dict[str, Any]) -> str:
        """Return what is guaranteed, or that nothing is, in words."""
        with_probability = f"with probability {guarantee['probability']:.12g}"
        if guarantee["risk"] == "answers":
            what = f"of what is answered at least {percent(guarantee['accuracy'])} is right on average"
            if guarantee["holds"]:
                tested = f"tested on {guarantee['tested']} {self.noun}, of which {guarantee['answered']} were answered"
                return f"guaranteed {with_probability}: {what} ({tested})"
            return (
                f"no guarantee: {guarantee['tested']} {self.noun} are too few, or the answers too often wrong, that "
                f"{what} {with_probability}; nothing is answered"
            )
        tolerance = self.budget["max_accuracy_drop"]
        each = guarantee.get("each")
        whose = f"of each {each}" if each else "on average"
        images = f"{self.noun} of each {each}" if each else self.noun
        what = {
            "accuracy-drop": f"accuracy {whose} at most {points(tolerance)} below that of {self._yardstick}",
            "disagreement": f"at most {100 * tolerance:g} % of {images} classified otherwise than by the full network",
        }[guarantee["risk"]]
        if guarantee["holds"]:
            alone = "" if each else "; a class or group may lose more"
            return f"guaranteed {with_probability}: {what} (tested on {guarantee['tested']} {self.noun}){alone}"
        return (
            f"no guarantee: {guarantee['tested']} {self.noun} are too few, or the early exits too weak, for {what} "
            f"{with_probability}; nobody leaves early"
        )


def _encode(calibration: Calibration) -> dict[str, Any]:
    return {
        "budget": calibration.budget,
        "thresholds": list(calibration.policy.thresholds),
        "abstain_below": calibration.policy.abstain_below,
        **calibration.policy.measure.to_json(),
        "proportions": list(calibration.proportions),
        "exit_macs": list(calibration.exit_macs),
        **({"full_macs": calibration.full_macs} if calibration.full_macs != calibration.exit_macs[-1] else {}),
        "network": calibration.network,
        "calibration": calibration.expected,
        "checkpoint": calibration.checkpoint,
        "exit_seconds": calibration.exit_seconds,
        "guarantee": calibration.guarantee,
        "reference": calibration.reference and calibration.reference.to_dict(),
        "thresholding": calibration.thresholding,
        "drop_from": calibration.drop_from,
        "origin": calibration.origin and calibration.origin._asdict(),
        "outcome": calibration.outcome and calibration.outcome.to_json(),
        "table": [{**line._asdict(), "thresholds": list(line.thresholds)} for line in calibration.table],
    }


def _decode(content: dict[str, Any], version: int) -> Calibration:
    guarantee = content["guarantee"]
    if guarantee is not None and version == 1:
        guarantee = {"probability" if key == "confidence" else key: value for key, value in guarantee.items()}
    thresholds = [None if t is None else float(t) for t in content["thresholds"]]
    full = content.get("full_macs", 0)
    if not isinstance(full, int) or not 0 <= full <= max(content["exit_macs"], default=0):
        raise ValueError(f"full_macs {full!r}")
    return Calibration(
        ExitPolicy(thresholds, measure_from_json(content), content.get("abstain_below")),
        content["budget"],
        tuple(content["proportions"]),
        tuple(content["exit_macs"]),
        content["calibration"],
        content["checkpoint"],
        content["exit_seconds"],
        guarantee,
        Reference.from_dict(content["reference"]) if content.get("reference") else None,
        tuple(_line(line) for line in content["table"]) if version >= 3 else (),
        full_macs=full,
        network=str(content.get("network", "")),
        outcome=Outcome.from_json(content["outcome"]) if content.get("outcome") else None,
        thresholding=kind if (kind := content.get("thresholding")) in get_args(Thresholding) else None,
        drop_from="full" if content.get("drop_from") == "full" else "best",
        origin=Origin.from_json(content.get("origin")),
    )


def _line(line: dict[str, Any]) -> Budgeted:
    numbers = {name: float(line[name]) for name in ("budget", "accuracy", "macs")}
    return Budgeted(thresholds=finite_thresholds(line["thresholds"]), **numbers)


CALIBRATION = Record(
    "calibration.json", "exitwise/calibration", _encode, _decode, expected="thresholds of exits", version=3
)
