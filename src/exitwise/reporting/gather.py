"""What a report shows, gathered from evaluated and calibrated runs as plain numbers.

Temperatures are fitted and thresholds were found on the calibration split; what is reported is of the test split. How
it looks is the page's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exitwise.benching.timing import measure_exit_seconds
from exitwise.data import Split, Splits
from exitwise.deploy.anew import standard_of, yardstick_of
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outcome import Outcome
from exitwise.exiting.outputs import Outputs, operate
from exitwise.exiting.paired import Paired
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.models.staged import StagedModel
from exitwise.reporting.changes import changes
from exitwise.reporting.choice import budget_command, cheapest, drop_command
from exitwise.reporting.content import Budget, Cheapest, Comparison, ExitFigures, Report, Rival, RunFigures
from exitwise.reporting.learning import learning
from exitwise.reporting.lines import group_runs, line_of
from exitwise.reporting.made import machine, now
from exitwise.reporting.pictures import class_figures
from exitwise.reporting.reliability import reliability
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run, check_same_data, run_names
from exitwise.runs.records.bench import BENCH, Bench
from exitwise.runs.records.evaluation import Evaluation
from exitwise.runs.records.metrics import read_metrics
from exitwise.version import __version__

MOST_PICTURES, PER_CLASS, CHANGED = 1000, 3, 10
"""At most: thumbnails of classes in a report; easiest and as many hardest of a class; lost and as many won of a run."""

SHOWN_EPOCHS = 5
"""Epochs whose weights are shown at most."""


def gather(paths: Sequence[str | Path], device: str = "auto", *, splits: Splits | None = None) -> Report:
    """Gather a report from run folders.

    Args:
        paths: runs of the same data; calibrated and evaluated.
        device: where to run the networks and measure times.
        splits: the runs' data, where it is loaded already.

    Raises:
        UserError: without runs, for a run that is not calibrated or not evaluated, or runs that cannot be compared.
    """
    if not paths:
        raise UserError("expected one or more run folders; got none")
    runs = [Run(path) for path in paths]
    _check_different(runs)
    names = run_names(runs)
    check_same_data(runs, names)
    groups = group_runs(names, [_settings_of(run) for run in runs])
    records = [_Record.of(run) for run in runs]
    place = pick_device(device)
    pictures = _Pictures(CHANGED, pictures_per_class(len(runs[0].classes), len(runs)))
    times: dict[tuple[Any, ...], tuple[float, ...]] = {}
    figures = []
    for run, name, record in zip(runs, names, records, strict=True):
        model = run.model(place)
        key = _network_key(run)
        if key not in times:
            times[key] = measure_exit_seconds(model)
        test = _Outputs.collect(run, model, splits or run.splits(), place)
        figures.append(_run_figures(run, name, record, test, times[key], pictures))
    return Report(
        figures,
        [_comparison(label, members, figures) for label, members in groups],
        runs[0].data["sizes"],
        machine(),
        str(place),
        now(),
        __version__,
    )


def _check_different(runs: Sequence[Run]) -> None:
    """Raise UserError for a folder given twice."""
    places = [run.path.resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"expected different run folders; got {twice.path} more than once")


def pictures_per_class(classes: int, runs: int) -> list[int]:
    """Return how many easiest, and as many hardest, images to show of each class, so that the report stays small."""
    each = min(PER_CLASS, MOST_PICTURES // (2 * classes * runs))
    if each:
        return [each] * classes
    shown = MOST_PICTURES // (2 * runs)
    return [int(label < shown) for label in range(classes)]


class _Pictures(NamedTuple):
    """How many images to show: lost, and as many won; easiest and as many hardest of each class."""

    changed: int
    per_class: Sequence[int]


class _Record(NamedTuple):
    """The records of a run folder that a report shows."""

    calibration: Calibration
    evaluation: Evaluation
    weights: Sequence[dict[str, Any]] | None
    bench: Bench | None
    metrics: Sequence[dict[str, float]]

    @classmethod
    def of(cls, run: Run) -> _Record:
        """Return them, those of one run under one calibration.

        Raises:
            UserError: where it was calibrated otherwise since it was evaluated.
        """
        bench = BENCH.read(run.path) if BENCH.exists(run.path) else None
        metrics = read_metrics(run.path)
        record = cls(run.read_calibration(), run.read_evaluation(), run.read_weights(), bench, metrics)
        evaluated = [line.policy.thresholds for line in record.evaluation.budgets]
        if record.calibration.table and evaluated != [line.thresholds for line in record.calibration.table]:
            raise UserError(
                f"expected test results of the calibration of {run.path}; it was calibrated otherwise since: "
                f"run `exitwise evaluate {run.path}` again"
            )
        return record


class _Outputs(NamedTuple):
    """Test split, its logits (N, K, C) and targets (N); what the exits said of the calibration split, and the
    temperatures for it."""

    split: Split
    logits: NDArray[Any]
    targets: NDArray[np.int64]
    held: Recorded
    temperatures: tuple[float, ...]

    @classmethod
    def collect(cls, run: Run, model: StagedModel, splits: Splits, device: torch.device) -> _Outputs:
        calibration, test = (
            collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), device)
            for split in (splits.calibration, splits.test)
        )
        held = Recorded(*calibration, run.classes, run.settings.split_seed)
        return cls(splits.test, *test, held, fit_temperatures(*calibration))


class _Tested(NamedTuple):
    """What policies do on a run's test images beside the answers that losses are counted from."""

    test: _Outputs
    standard: NDArray[np.int64]
    exit_macs: Sequence[int]
    seconds: Sequence[float]

    def budget(self, policy: ExitPolicy, command: str = "", share: float | None = None) -> Budget:
        """Return what a policy does."""
        targets = self.test.targets
        outputs = Outputs.from_logits(self.test.logits, targets, policy.measure)
        left = outputs.under(policy)
        point = operate(outputs, policy, self.exit_macs)
        mean = sum(share * time for share, time in zip(point.shares, self.seconds, strict=True))
        paired = Paired.of(left.predictions == targets, self.standard == targets)
        return Budget(tuple(policy.thresholds), point, mean, paired, command, share)

    def lines(self, calibration: Calibration, classes: Sequence[str]) -> list[str]:
        """Return what a calibration does, in words."""
        policy, targets = calibration.policy, self.test.targets
        outputs = Outputs.from_logits(self.test.logits, targets, policy.measure)
        yardstick = yardstick_of(calibration)
        outcome = Outcome.of(
            outputs.under(policy).predictions,
            targets,
            self.test.logits.argmax(-1),
            standard_of(calibration, self.test.logits),
            yardstick,
            classes,
        )
        point = operate(outputs, policy, self.exit_macs)
        return outcome.lines(calibration.intro, point, calibration.full_macs, "test images")


def _run_figures(
    run: Run, name: str, record: _Record, test: _Outputs, seconds: Sequence[float], pictures: _Pictures
) -> RunFigures:
    calibration, evaluation, weights, bench, metrics = record
    policy, costs = calibration.policy, evaluation.exit_macs
    standard = standard_of(calibration, test.logits)
    tested = _Tested(test, standard, costs, seconds)
    budgets = [
        tested.budget(line.policy, budget_command(run.path, line.budget, calibration), line.budget)
        for line in evaluation.budgets
    ]
    left = Outputs.from_logits(test.logits, test.targets, policy.measure).under(policy)
    return RunFigures(
        name,
        _shown(_settings_of(run)),
        calibration,
        evaluation.lines or tested.lines(calibration, run.classes),
        yardstick_of(calibration).name(policy.exits),
        tested.budget(policy),
        _cheapest(run, calibration, tested),
        changes(test.split, left, standard, pictures.changed),
        _rivals(bench, evaluation),
        sorted(budgets, key=lambda budget: budget.point.macs),
        _exit_figures(evaluation, test, seconds),
        class_figures(test.split, left, standard, costs, pictures.per_class),
        spread_out([row for row in weights or [] if row["losses"]]),
        learning(metrics, policy.exits),
    )


def _cheapest(run: Run, calibration: Calibration, tested: _Tested) -> Cheapest | None:
    found = cheapest(calibration, tested.test.held)
    if found is None:
        return None
    command = drop_command(run.path, calibration)
    own = tested._replace(standard=standard_of(found, tested.test.logits))
    return Cheapest(own.lines(found, run.classes), own.budget(found.policy, command))


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


def _settings_of(run: Run) -> dict[str, Any]:
    """Return all settings; of a cascade the network's are the names and exits of all."""
    its = {} if run.cascade is None else {"model": run.network, "exits": run.exits, "exits_at": None}
    return {**run.settings.model_dump(), **its}


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the options of a method from elsewhere, where there is none."""
    return {key: value for key, value in settings.items() if key != "method_options" or value is not None}


def _exit_figures(evaluation: Evaluation, test: _Outputs, seconds: Sequence[float]) -> list[ExitFigures]:
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


def _comparison(label: str, members: list[int], runs: Sequence[RunFigures]) -> Comparison:
    mine = [runs[position] for position in members]
    accuracies = [[budget.point.accuracy for budget in run.budgets] for run in mine]
    macs, seconds = (
        line_of([([read(budget) for budget in run.budgets], each) for run, each in zip(mine, accuracies, strict=True)])
        for read in (lambda budget: budget.point.macs, lambda budget: budget.seconds)
    )
    alone = np.mean([[each.accuracy for each in run.exits] for run in mine], axis=0)
    return Comparison(label, members, macs, seconds, alone.tolist())


def _network_key(run: Run) -> tuple[Any, ...]:
    """Return what decides how long the network takes."""
    names = ("exits", "exits_at", "head", "skip", "image_size", "mean")
    return run.network, run.exits, *(str(getattr(run.settings, name)) for name in names), len(run.classes)
