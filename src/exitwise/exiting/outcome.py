"""What an exit policy does with labelled samples, beside the best that could be had without it. Imports no torch.

The answer to three questions: what is lost, how sure that is, and for whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.outputs import Left
from exitwise.exiting.paired import Paired
from exitwise.exiting.parts import Answers, Part, losing, mean_of_counts, parts_of
from exitwise.exiting.point import OperatingPoint
from exitwise.shapes import Int
from exitwise.shown import percent, points

TOLERANCE = 0.01
"""Loss of accuracy that is not worth a word, where no other was asked for."""

SELDOM = 0.01
"""How often an exit that is no better may be taken for a better one, where that must not happen."""

NAMED = 3
"""Classes or groups that are named at most."""


class Yardstick(NamedTuple):
    """The answers that accuracy is counted from.

    Attributes:
        exit: where all samples leave (0-based).
        own: whether these are that exit's own answers; else the calibrated measure's there, which may mix several.
    """

    exit: int
    own: bool = True

    def name(self, exits: int) -> str:
        """Return what it is called, of so many exits."""
        if not self.own:
            return f"all at exit {self.exit + 1} by this measure"
        return "the full network" if self.exit == exits - 1 else f"exit {self.exit + 1} alone"

    def answers(
        self, own: Int[Array, "samples exits"], read: Int[Array, "samples exits"]
    ) -> Int[np.ndarray, "samples"]:
        """Return its answers, from the exits' own and those that the measure reads."""
        return as_numpy(own if self.own else read)[:, self.exit]


def best_yardstick(
    own: Int[Array, "samples exits"],
    read: Int[Array, "samples exits"],
    targets: Int[Array, "samples"],
    *,
    surely: bool = False,
) -> Yardstick:
    """Return the most accurate answers at a single exit, the full network's where none are better.

    Args:
        own: answers of each exit.
        read: answers that the measure makes of them.
        targets: class indices.
        surely: take others than the full network's only where they are better beyond chance: a guarantee that counts
            from an exit which merely seemed better on few samples would not hold for the full network.
    """
    exits = own.shape[1]
    every = [Yardstick(exit, kind) for kind in (True, False) for exit in reversed(range(exits))]
    targets = as_numpy(targets)
    if surely:
        full = Yardstick(exits - 1)
        level, standard = 1 - SELDOM / len(every), full.answers(own, read) == targets
        pairs = {each: Paired.of(each.answers(own, read) == targets, standard) for each in every}
        every = [full, *(each for each, paired in pairs.items() if paired.interval(level)[0] > 0)]
    return max(every, key=lambda each: int((each.answers(own, read) == targets).sum()))


class Outcome(NamedTuple):
    """How a policy's answers to labelled samples differ from a yardstick's.

    Attributes:
        yardstick: what they are counted from.
        paired: over all samples.
        unnamed: classes of samples that no sample is given.
        majority: share of the commonest class.
        better: where an earlier exit alone is beyond noise more accurate than the full network: the best such one,
            1-based, beside it.
        classes: that there are samples of; in older records the one that loses most alone.
        groups: of the samples, where they are known.
        tolerance: loss of a class or group that is not worth a word.
        answers: what is answered; None where all is.
        cheaper: a single exit that costs no more than the policy and is beyond noise more accurate: the best such one,
            1-based, and it beside the policy; None where none is, or costs are not known.
    """

    yardstick: Yardstick
    paired: Paired
    unnamed: tuple[str, ...]
    majority: float
    better: tuple[int, Paired] | None
    classes: tuple[Part, ...] = ()
    groups: tuple[Part, ...] = ()
    tolerance: float = TOLERANCE
    answers: Answers | None = None
    cheaper: tuple[int, Paired] | None = None

    @property
    def worst(self) -> Part | None:
        """Return the class that loses most; None where none loses."""
        return _worst(self.classes)

    @classmethod
    def of(
        cls,
        left: Left,
        targets: Int[Array, "samples"],
        own: Int[Array, "samples exits"],
        standard: Int[Array, "samples"],
        yardstick: Yardstick,
        classes: Sequence[str],
        groups: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
        exit_costs: Sequence[float] | None = None,
    ) -> Self:
        """Return it for the answers of a policy.

        Args:
            left: how the samples left by it.
            targets: class indices.
            own: answers of each exit.
            standard: answers to count from.
            yardstick: whose they are.
            classes: names, by class index.
            groups: that of each sample.
            tolerance: loss of a class or group that is not worth a word.
            exit_costs: of leaving at each exit.
        """
        answers = left.predictions
        targets, own, standard = map(as_numpy, (targets, own, standard))
        right, reference = answers == targets, standard == targets
        counts = np.bincount(targets, minlength=len(classes))
        rest = right, reference, left.exits, own.shape[1], left.answered
        of_groups: tuple[Part, ...] = ()
        if groups is not None:
            names, members = np.unique(list(groups), return_inverse=True)
            of_groups = parts_of(members, names.tolist(), *rest)
        given = np.bincount(answers, minlength=len(classes))
        unnamed = tuple(name for name, there, said in zip(classes, counts, given, strict=True) if there and not said)
        return cls(
            yardstick,
            Paired.of(right, reference),
            unnamed,
            float(counts.max() / len(targets)),
            _better_exit(own == targets[:, None]),
            parts_of(targets, classes, *rest),
            of_groups,
            tolerance,
            Answers.of(left.answered, right),
            None if exit_costs is None else _cheaper_exit(own == targets[:, None], right, left.exits, exit_costs),
        )

    def lines(
        self, intro: str, point: OperatingPoint, full_macs: float, images: str, time: float | None = None
    ) -> list[str]:
        """Return it in words, what matters most first.

        Args:
            intro: what the policy is for, such as ``within 50 % of MACs``.
            point: what it spends.
            full_macs: what shares of MACs are of.
            images: what the samples are, such as ``held-out images``.
            time: share of the full network's time that it takes, where it is known.
        """
        exits = len(point.shares)
        lines = []
        right = round(point.accuracy * self.paired.samples)
        if mean_of_counts((0, 1), (self.paired.samples - right, right)).low <= self.majority:
            beyond = "" if point.accuracy <= self.majority else ", beyond chance,"
            commonest = percent(self.majority)
            lines.append(f"No better{beyond} than to answer always with the commonest class, which {commonest} are of.")
        if self.better is not None:
            number, paired = self.better
            lines.append(
                f"Exit {number} alone is more accurate than the full network, by {paired} on "
                f"{paired.samples} {images}: train the network longer, or end it there."
            )
        if exits > 1:
            lines.append(self.sentence(intro, point, full_macs, images, time))
        if self.cheaper is not None:
            number, paired = self.cheaper
            lines.append(
                f"Exit {number} alone costs no more and is more accurate than this policy, by {paired}: let all leave "
                f"there (--max-accuracy-drop finds that), or try temperatures or another measure."
            )
        if self.answers is not None:
            lines.append(self.answers.said(images))
        for what, parts in (("classes", self.classes), ("groups", self.groups)):
            if len(parts) > 1 and (found := losing(parts, self.tolerance)):
                lines.append(_of_losing(found, len(parts), what, self.tolerance))
        if self.unnamed:
            more = f" and {len(self.unnamed) - NAMED} more" if len(self.unnamed) > NAMED else ""
            names = ", ".join(self.unnamed[:NAMED])
            lines.append(f"None of the {images} is given the class {names}{more}, though some are of it.")
        return lines

    def sentence(
        self, intro: str, point: OperatingPoint, full_macs: float, images: str, time: float | None = None
    ) -> str:
        """Return what the policy spends and loses, and where samples leave; see :meth:`lines`."""
        leaving = ", ".join(f"{100 * share:.0f}" for share in point.shares)
        noise = ", which may be chance" if self.paired.is_noise and self.paired.difference else ""
        spent = f"{100 * point.macs / full_macs:.0f} % of MACs"
        if time is not None:
            spent += f", {100 * time:.0f} % of the time"
        text = (
            f"{intro[0].upper()}{intro[1:]}: {spent}; {self.paired} against "
            f"{self.yardstick.name(len(point.shares))} on {self.paired.samples} {images}{noise}; leaves at exits 1 to "
            f"{len(point.shares)}: {leaving} %."
        )
        for what, worst in (("class", self.worst), ("group", _worst(self.groups))):
            if worst is not None:
                text += f" Worst {what}: {worst.name}, {worst.paired}."
        return text

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **self._asdict(),
            "yardstick": self.yardstick._asdict(),
            "paired": self.paired._asdict(),
            "classes": [part.to_json() for part in self.classes],
            "groups": [part.to_json() for part in self.groups],
            "unnamed": list(self.unnamed),
            "answers": self.answers and self.answers._asdict(),
            "cheaper": self.cheaper and {"exit": self.cheaper[0], **self.cheaper[1]._asdict()},
            "better": self.better and {"exit": self.better[0], **self.better[1]._asdict()},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return it from :meth:`to_json`."""

        better, worst, cheaper = (content.get(name) for name in ("better", "worst", "cheaper"))
        classes = map(Part.from_json, content.get("classes", ()))
        return cls(
            Yardstick(int(content["yardstick"]["exit"]), bool(content["yardstick"]["own"])),
            Paired.from_json(content["paired"]),
            tuple(map(str, content["unnamed"])),
            float(content["majority"]),
            better and (int(better["exit"]), Paired.from_json(better)),
            (Part(str(worst["name"]), Paired.from_json(worst), 0),) if worst else tuple(classes),
            tuple(map(Part.from_json, content.get("groups", ()))),
            float(content.get("tolerance", TOLERANCE)),
            Answers.from_json(content.get("answers")),
            cheaper and (int(cheaper["exit"]), Paired.from_json(cheaper)),
        )


def _worst(parts: Sequence[Part]) -> Part | None:
    worst = min(parts, key=lambda part: part.paired.difference, default=None)
    return worst if worst is not None and worst.paired.difference < 0 else None


def _of_losing(found: Sequence[Part], count: int, what: str, tolerance: float) -> str:
    """Return in words which parts lose more than a tolerance."""
    named = "; ".join(f"{part.name}, {part.paired}" for part in found[:NAMED])
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    lose = f"lose more than {points(tolerance)} here, and lose beyond chance"
    return f"{len(found)} of {count} {what} {lose}: {named}{more}."


def _better_exit(right: Any) -> tuple[int, Paired] | None:
    """Return the most accurate early exit, 1-based, beside the last one, if it is better beyond noise."""
    early = right[:, :-1].sum(axis=0)
    if len(early) == 0:
        return None
    best = int(early.argmax())
    paired = Paired.of(right[:, best], right[:, -1])
    return (best + 1, paired) if paired.difference > 0 and not paired.is_noise else None


def _cheaper_exit(alone: Any, right: Any, exits: Any, costs: Sequence[float]) -> tuple[int, Paired] | None:
    """Return the most accurate exit, 1-based, of those that cost no more than the exits taken, beside these, if it is
    better beyond noise."""
    each = np.asarray(costs, dtype=np.float64)
    affordable = np.flatnonzero(each <= each[exits].mean() * (1 + 1e-9))
    if len(affordable) == 0:
        return None
    best = int(affordable[alone[:, affordable].sum(axis=0).argmax()])
    paired = Paired.of(alone[:, best], right)
    return (best + 1, paired) if paired.difference > 0 and not paired.is_noise else None
