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
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outputs import Outputs, operate
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.models.staged import StagedModel
from exitwise.reporting.content import Budget, Comparison, ExitFigures, Report, RunFigures
from exitwise.reporting.lines import group_runs, line_of
from exitwise.reporting.made import machine, now
from exitwise.reporting.pictures import class_figures
from exitwise.reporting.reliability import reliability
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run, check_same_data, run_names
from exitwise.runs.records.evaluation import Evaluation
from exitwise.version import __version__

MOST_PICTURES, PER_CLASS = 1200, 3
"""Thumbnails in a report at most; easiest and as many hardest of a class at most."""

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
    pictures = pictures_per_class(len(runs[0].classes), len(runs))
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


class _Record(NamedTuple):
    """The records of a run folder that a report shows."""

    calibration: Calibration
    evaluation: Evaluation
    weights: Sequence[dict[str, Any]] | None

    @classmethod
    def of(cls, run: Run) -> _Record:
        """Return them, those of one run under one calibration.

        Raises:
            UserError: where it was calibrated otherwise since it was evaluated.
        """
        record = cls(run.read_calibration(), run.read_evaluation(), run.read_weights())
        evaluated = [line.policy.thresholds for line in record.evaluation.budgets]
        if record.calibration.table and evaluated != [line.thresholds for line in record.calibration.table]:
            raise UserError(
                f"expected test results of the calibration of {run.path}; it was calibrated otherwise since: "
                f"run `exitwise evaluate {run.path}` again"
            )
        return record


class _Outputs(NamedTuple):
    """Test split, its logits (N, K, C) and targets (N); temperatures of the exits, from the calibration split."""

    split: Split
    logits: NDArray[Any]
    targets: NDArray[np.int64]
    temperatures: tuple[float, ...]

    @classmethod
    def collect(cls, run: Run, model: StagedModel, splits: Splits, device: torch.device) -> _Outputs:
        calibration, test = (
            collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), device)
            for split in (splits.calibration, splits.test)
        )
        return cls(splits.test, *test, fit_temperatures(*calibration))


def _run_figures(
    run: Run, name: str, record: _Record, test: _Outputs, seconds: Sequence[float], pictures: Sequence[int]
) -> RunFigures:
    calibration, evaluation, weights = record
    policy = calibration.policy
    outputs = Outputs.from_logits(test.logits, test.targets, policy.measure)
    calibrated = operate(outputs, policy, evaluation.exit_macs)
    budgets = [_budget(line.policy, line.test, seconds, line.budget) for line in evaluation.budgets]
    return RunFigures(
        name,
        _shown(_settings_of(run)),
        calibration,
        _budget(policy, calibrated, seconds),
        sorted(budgets, key=lambda budget: budget.point.macs),
        _exit_figures(evaluation, test, seconds),
        class_figures(test.split, outputs.under(policy), policy.exits, pictures),
        spread_out([row for row in weights or [] if row["losses"]]),
    )


def _settings_of(run: Run) -> dict[str, Any]:
    """Return all settings; of a cascade the network's are the names and exits of all."""
    its = {} if run.cascade is None else {"model": run.network, "exits": run.exits, "exits_at": None}
    return {**run.settings.model_dump(), **its}


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the options of a method from elsewhere, where there is none."""
    return {key: value for key, value in settings.items() if key != "method_options" or value is not None}


def _budget(policy: ExitPolicy, point: OperatingPoint, seconds: Sequence[float], share: float | None = None) -> Budget:
    mean = sum(share * time for share, time in zip(point.shares, seconds, strict=True))
    return Budget(tuple(policy.thresholds), point, mean, share)


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
