"""What a report shows of one run: its records, and what its network says of the test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exitwise.data import Split, Splits
from exitwise.deploy.anew import standard_of, yardstick_of
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitored import Monitored
from exitwise.errors import UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outcome import Outcome
from exitwise.exiting.outputs import Outputs, operate
from exitwise.exiting.paired import Paired
from exitwise.exiting.parts import Part
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.exiting.wish import as_calibrated
from exitwise.models.staged import StagedModel
from exitwise.reporting.changes import changes
from exitwise.reporting.choice import budget_command, cheapest, drop_command
from exitwise.reporting.content import Budget, ByClass, Cheapest, ExitFigures, Rival, RunFigures
from exitwise.reporting.learning import learning
from exitwise.reporting.pictures import class_figures
from exitwise.reporting.reliability import reliability
from exitwise.runs.folder import Run
from exitwise.runs.other_images import calibrated_on
from exitwise.runs.records.bench import BENCH, Bench
from exitwise.runs.records.evaluation import Evaluation
from exitwise.runs.records.metrics import read_metrics

SHOWN_EPOCHS = 5
"""Epochs whose weights are shown at most."""


class Pictures(NamedTuple):
    """How many images to show: lost, and as many won; easiest and as many hardest of each class."""

    changed: int
    per_class: Sequence[int]


class Record(NamedTuple):
    """The records of a run folder that a report shows."""

    calibration: Calibration
    evaluation: Evaluation
    weights: Sequence[dict[str, Any]] | None
    bench: Bench | None
    metrics: Sequence[dict[str, float]]

    @classmethod
    def of(cls, run: Run) -> Record:
        """Return them, those of one run under one calibration.

        Raises:
            UserError: where it was calibrated otherwise since it was evaluated.
        """
        timed = BENCH.called(run.name)
        bench = timed.read(run.path) if timed.exists(run.path) else None
        metrics = read_metrics(run.path)
        record = cls(run.read_calibration(), run.read_evaluation(), run.read_weights(), bench, metrics)
        evaluated = [line.policy.thresholds for line in record.evaluation.budgets]
        if record.calibration.table and evaluated != [line.thresholds for line in record.calibration.table]:
            raise UserError(
                f"expected test results of the calibration of {run.path}; it was calibrated otherwise since: "
                f"run `exitwise evaluate {run.path}{run.option()}` again"
            )
        return record


class Said(NamedTuple):
    """Test split, its logits (N, K, C) and targets (N); what the exits said of the images that it was calibrated on,
    None where these are gone, and why; and the temperatures for the calibration split."""

    split: Split
    logits: NDArray[Any]
    targets: NDArray[np.int64]
    held: Recorded | None
    temperatures: tuple[float, ...]
    gone: str = ""

    @classmethod
    def collect(
        cls, run: Run, model: StagedModel, splits: Splits, device: torch.device, calibration: Calibration
    ) -> Said:
        def logits(split: Split) -> tuple[NDArray[Any], NDArray[np.int64]]:
            return collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), device)

        own, held, gone = logits(splits.calibration), None, ""
        try:
            split = calibrated_on(run, calibration, splits.calibration)
            outputs = own if split is splits.calibration else logits(split)
            held = Recorded(*outputs, run.classes, run.settings.split_seed, origin=calibration.origin)
        except UserError as error:  # from elsewhere, and gone
            gone = str(error)
        return cls(splits.test, *logits(splits.test), held, fit_temperatures(*own), gone)


class _Tested(NamedTuple):
    """What a calibration's measure reads of a run's test images, beside the answers that its losses count from."""

    calibration: Calibration
    outputs: Outputs
    own: NDArray[np.int64]
    standard: NDArray[np.int64]
    seconds: Sequence[float]

    @classmethod
    def by(cls, calibration: Calibration, test: Said, seconds: Sequence[float]) -> _Tested:
        outputs = Outputs.from_logits(test.logits, test.targets, calibration.policy.measure)
        return cls(calibration, outputs, test.logits.argmax(-1), standard_of(calibration, test.logits), seconds)

    def budget(self, policy: ExitPolicy, command: str = "", share: float | None = None) -> Budget:
        """Return what thresholds do."""
        left, targets = self.outputs.under(policy), self.outputs.targets
        point = operate(self.outputs, policy, self.calibration.exit_macs)
        mean = sum(share * time for share, time in zip(point.shares, self.seconds, strict=True))
        paired = Paired.of(left.predictions == targets, self.standard == targets)
        return Budget(tuple(policy.thresholds), point, mean, paired, command, share)

    def lines(self, classes: Sequence[str], groups: Sequence[Part] = ()) -> list[str]:
        """Return what the calibration does, in words; ``groups`` are those of its evaluation."""
        return self._outcome(classes)._replace(groups=tuple(groups)).lines(*self._said())

    def sentence(self, classes: Sequence[str]) -> str:
        """Return the one of the lines that says what the calibration spends and loses."""
        return self._outcome(classes).sentence(*self._said())

    def _outcome(self, classes: Sequence[str]) -> Outcome:
        calibration = self.calibration
        left, yardstick = self.outputs.under(calibration.policy), yardstick_of(calibration)
        how: dict[str, Any] = {"tolerance": calibration.tolerance, "exit_costs": calibration.exit_macs}
        return Outcome.of(left, self.outputs.targets, self.own, self.standard, yardstick, classes, **how)

    def _said(self) -> tuple[str, OperatingPoint, float, str, float]:
        calibration = self.calibration
        point = operate(self.outputs, calibration.policy, calibration.exit_macs)
        time = sum(share * each for share, each in zip(point.shares, self.seconds, strict=True)) / self.seconds[-1]
        return as_calibrated(calibration.intro), point, calibration.full_macs, f"test {calibration.noun}", time


def figures_of(
    run: Run,
    name: str,
    record: Record,
    test: Said,
    seconds: Sequence[float],
    pictures: Pictures,
    monitored: Monitored | None = None,
) -> RunFigures:
    calibration, evaluation, weights, bench, metrics = record
    policy, tested = calibration.policy, _Tested.by(calibration, test, seconds)
    left, calibrated = tested.outputs.under(policy), tested.budget(policy)
    groups = _groups(evaluation, calibrated)
    budgets = [
        tested.budget(line.policy, budget_command(run, line.budget, calibration), line.budget)
        for line in evaluation.budgets
    ]
    return RunFigures(
        name,
        _shown(settings_of(run)),
        calibration,
        tested.lines(run.classes, groups),
        yardstick_of(calibration).name(policy.exits),
        calibrated,
        _cheapest(run, calibration, test, seconds),
        changes(test.split, left, tested.standard, pictures.changed),
        _rivals(bench, evaluation),
        sorted(budgets, key=lambda budget: budget.point.macs),
        _exit_figures(evaluation, test, seconds),
        groups,
        class_figures(test.split, left, tested.standard, evaluation.exit_macs, pictures.per_class),
        spread_out([row for row in weights or [] if row["losses"]]),
        learning(metrics, policy.exits),
        monitored,
        _by_class(evaluation, calibrated, run.classes),
        test.gone,
    )


def _by_class(evaluation: Evaluation, calibrated: Budget, classes: Sequence[str]) -> ByClass | None:
    """Return the scores of an evaluation; those of its policy where it is of these thresholds."""
    rows = [(f"exit {number}", scores) for number, scores in enumerate(evaluation.exit_scores, start=1)]
    if evaluation.scores is not None and evaluation.calibrated == calibrated.point:
        rows.append(("as calibrated", evaluation.scores))
    return ByClass(list(classes), rows) if rows else None


def _groups(evaluation: Evaluation, calibrated: Budget) -> list[Part]:
    """Return the groups of an evaluation, the largest loss first; none where it is of other thresholds than these."""
    if evaluation.outcome is None or evaluation.calibrated != calibrated.point:
        return []
    return sorted(evaluation.outcome.groups, key=lambda part: part.paired.difference)


def _cheapest(run: Run, calibration: Calibration, test: Said, seconds: Sequence[float]) -> Cheapest | None:
    found = None if test.held is None else cheapest(calibration, test.held)
    if found is None:
        return None
    tested = _Tested.by(found, test, seconds)
    return Cheapest(tested.sentence(run.classes), tested.budget(found.policy, drop_command(run, calibration)))


def _rivals(bench: Bench | None, evaluation: Evaluation) -> list[Rival]:
    """Return what a bench timed beside the run and is no exit of it; nothing where the bench is of other weights."""
    rows = [] if bench is None else bench.rows
    full = [row.accuracy for row in rows if (row.network.kind, row.form) == ("full", "eager") and row.accuracy]
    if any(abs(accuracy - evaluation.anytime[-1]) > 0.5 / evaluation.images for accuracy in full):
        return []
    own = {f"exit {number} alone" for number in range(1, len(evaluation.exit_macs) + 1)}
    found: dict[str, Rival] = {}
    for row in sorted(rows, key=lambda row: (row.form != "eager", row.batch_size)):
        name = row.network.name
        if row.network.kind != "static" or name in own or row.accuracy is None or row.macs is None:
            continue
        seconds = row.mean if (row.form, row.batch_size) == ("eager", 1) else None
        found.setdefault(name, Rival(name, row.accuracy, row.macs, seconds))
    return list(found.values())


def settings_of(run: Run) -> dict[str, Any]:
    """Return all settings; of a cascade the network's are the names and exits of all."""
    its = {} if run.cascade is None else {"model": run.network, "exits": run.exits, "exits_at": None}
    return {**run.settings.model_dump(), **its}


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the options of a method from elsewhere, where there is none."""
    return {key: value for key, value in settings.items() if key != "method_options" or value is not None}


def _exit_figures(evaluation: Evaluation, test: Said, seconds: Sequence[float]) -> list[ExitFigures]:
    before, after = (
        [reliability(*pair) for pair in zip(outputs.confidences.T, outputs.correct.T, strict=True)]
        for outputs in (
            Outputs.from_logits(test.logits, test.targets, create_measure(temperatures=temperatures))
            for temperatures in (None, test.temperatures)
        )
    )
    columns = (evaluation.anytime, evaluation.exit_macs, seconds, test.temperatures, before, after)
    return [ExitFigures(*row) for row in zip(*columns, strict=True)]


def spread_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first, the last, and some between."""
    return [rows[i] for i in sorted({round(x) for x in np.linspace(0, len(rows) - 1, SHOWN_EPOCHS)})] if rows else []
