"""evaluation.json: test results of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exitwise.deploy.parts_table import parts_table
from exitwise.exiting.measures import measure_from_json
from exitwise.exiting.outcome import Outcome
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy
from exitwise.exiting.scores import TOP, Scores
from exitwise.exiting.wish import as_calibrated
from exitwise.shown import Noun, Shown, macs, percent, shares
from exitwise.storage.record import Record

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


SHOWN_EVERY = 4
"""Lines of a table of budgets, of which one is printed: each fifth of the full network's cost."""


class BudgetPoint(NamedTuple):
    """A line of a calibration's table on test samples: the share of the full network's MACs that it is for, the policy,
    and what it does. In records of version 1 thresholds are of max-probability, whatever was calibrated."""

    budget: float
    policy: ExitPolicy
    test: OperatingPoint


@dataclass(frozen=True)
class Evaluation(Shown):
    """Test results of a run, or of a network.

    Attributes:
        checkpoint: name of the checkpoint that was evaluated; None where an old record does not say.
        exit_macs: cost of leaving at each exit.
        anytime: accuracy of each exit on all test images.
        budgets: the curve: thresholds for a range of budgets, of the very measure and kind that the calibration has, or
            max-probability's without one.
        calibrated: what the run's own calibration does on the test split; None without one.
        images: number of test images that all this is measured on.
        left_out: number of test images that turned out broken.
        answers: accuracy of the answers at each exit on all test images, where the calibration's measure makes them of
            several exits'; empty where they are the exits' own.
        full_macs: what shares of cost are of; 0: the last exit's.
        intro: what the calibration is for, in words.
        outcome: what it loses on the test images, and for whom; None without one, and in records of version 1.
        exit_scores: of each exit alone, class by class; none in older records.
        scores: of the calibration, class by class; None without one, and in older records.
        noun: what the test samples are called.
        stored: the file that it was written to; None: nowhere.
    """

    checkpoint: str | None
    exit_macs: tuple[int, ...]
    anytime: list[float]
    budgets: tuple[BudgetPoint, ...]
    calibrated: OperatingPoint | None
    images: int
    left_out: int
    answers: tuple[float, ...] = ()
    full_macs: int = 0
    intro: str = ""
    outcome: Outcome | None = None
    exit_scores: tuple[Scores, ...] = ()
    scores: Scores | None = None
    noun: Noun = "images"
    stored: Path | None = field(default=None, compare=False, repr=False)

    @property
    def full(self) -> int:
        """What shares of cost are of."""
        return self.full_macs or self.exit_macs[-1]

    @property
    def lines(self) -> list[str]:
        """What the calibration does on the test images, in words, what matters most first."""
        if self.outcome is None or self.calibrated is None:
            return []
        return self.outcome.lines(as_calibrated(self.intro), self.calibrated, self.full, f"test {self.noun}")

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        full = self.full
        table = Table(title=f"Test {self.noun}")
        for name in ("setting", "accuracy", "MACs", "of full", "leaving at each exit"):
            table.add_column(name, justify="left" if name == "setting" else "right")
        for number, (accuracy, cost) in enumerate(zip(self.anytime, self.exit_macs, strict=True), start=1):
            table.add_row(f"all at exit {number}", percent(accuracy), macs(cost), percent(cost / full), "")
        table.add_section()
        for line in self.budgets[::-SHOWN_EVERY][::-1]:
            table.add_row(f"budget {percent(line.budget)}", *_row(line.test, full))
        if self.calibrated is not None:
            table.add_section()
            for number, (accuracy, cost) in enumerate(zip(self.answers, self.exit_macs, strict=False), start=1):
                name = f"all at exit {number}, as calibrated"
                table.add_row(name, percent(accuracy), macs(cost), percent(cost / full), "")
            table.add_row("as calibrated", *_row(self.calibrated, full))
        return Group(*self.lines, table, *self._by_class(), *self._parts())

    def _by_class(self) -> list[str]:
        """Return lines of what is said class by class; none where a record says nothing of it."""
        if not self.exit_scores:
            return []
        exits = f"exits 1 to {len(self.exit_scores)}"
        lines = [f"macro F1, {exits}: " + ", ".join(percent(scores.macro_f1) for scores in self.exit_scores)]
        if self.scores is not None:
            lines[-1] += f"; as calibrated {percent(self.scores.macro_f1)}"
        tops = [scores.top for scores in self.exit_scores if scores.top is not None]
        if tops:
            lines.append(f"class among the {TOP} likeliest, {exits}: " + ", ".join(map(percent, tops)))
            if self.scores is not None and self.scores.top is not None:
                lines[-1] += f"; as calibrated {percent(self.scores.top)}"
        return lines

    def _parts(self) -> list[Table]:
        """Return classes and groups as tables."""
        outcome = self.outcome
        if outcome is None or not any(part.leaving for part in outcome.classes):
            return []
        yardstick = outcome.yardstick.name(len(self.exit_macs))
        return [
            parts_table(parts, what, yardstick, self.exit_macs, self.full, self.noun)
            for what, parts in (("class", outcome.classes), ("group", outcome.groups))
            if parts
        ]


def _row(point: OperatingPoint, full: float) -> tuple[str, str, str, str]:
    return percent(point.accuracy), macs(point.macs), percent(point.macs / full), shares(point.shares)


def _encode(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "checkpoint": evaluation.checkpoint,
        "images": evaluation.images,
        "noun": evaluation.noun,
        "left_out": evaluation.left_out,
        "exit_macs": list(evaluation.exit_macs),
        "full_macs": evaluation.full_macs,
        "anytime": evaluation.anytime,
        **(evaluation.budgets[0].policy.measure.to_json() if evaluation.budgets else {}),
        "budgets": [
            {"budget": line.budget, "thresholds": list(line.policy.thresholds), "test": line.test._asdict()}
            for line in evaluation.budgets
        ],
        "intro": evaluation.intro,
        "outcome": evaluation.outcome and evaluation.outcome.to_json(),
        "answers": list(evaluation.answers),
        "exit_scores": [scores.to_json() for scores in evaluation.exit_scores],
        "scores": None if evaluation.scores is None else evaluation.scores.to_json(),
        "calibrated": evaluation.calibrated._asdict() if evaluation.calibrated else None,
    }


def _decode(content: dict[str, Any], version: int) -> Evaluation:
    calibrated, full = content["calibrated"], content.get("full_macs", 0) or content["exit_macs"][-1]
    if version == 1:
        lines = [(point["calibration"]["macs"] / full, point) for point in content["curve"]]
    else:
        lines = [(line["budget"], line) for line in content["budgets"]]
    measure = measure_from_json(content) if "measure" in content else MAX_PROBABILITY
    budgets = [
        BudgetPoint(share, ExitPolicy(line["thresholds"], measure), _point(line["test"])) for share, line in lines
    ]
    return Evaluation(
        content.get("checkpoint"),
        tuple(content["exit_macs"]),
        list(content["anytime"]),
        tuple(sorted(budgets, key=lambda line: line.budget)),
        None if calibrated is None else _point(calibrated),
        content["images"],
        content["left_out"],
        tuple(content.get("answers", ())),
        content.get("full_macs", 0),
        content.get("intro", ""),
        Outcome.from_json(content["outcome"]) if content.get("outcome") else None,
        tuple(map(Scores.from_json, content.get("exit_scores", ()))),
        Scores.from_json(content["scores"]) if content.get("scores") else None,
        content.get("noun", "images"),
    )


def _point(record: dict[str, Any]) -> OperatingPoint:
    return OperatingPoint(record["accuracy"], record["macs"], tuple(record["shares"]))


EVALUATION = Record(
    "evaluation.json",
    "exitwise/evaluation",
    _encode,
    _decode,
    expected="test results",
    again="run `exitwise evaluate {run}`",
    version=2,
)
