"""What a report shows, gathered from evaluated and calibrated runs as plain numbers.

Temperatures are fitted and thresholds were found on the calibration split; what is reported is of the test split. How
it looks is the page's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exitwise.benching.timing import measure_exit_seconds
from exitwise.data import Splits
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitored import Monitored, read_monitored
from exitwise.errors import UserError
from exitwise.kernels.timing import busy
from exitwise.reporting.content import Comparison, Report, RunFigures
from exitwise.reporting.lines import group_runs, line_of
from exitwise.reporting.made import machine, now
from exitwise.reporting.one_run import Pictures, Record, Said, figures_of, settings_of
from exitwise.runs.build import pick_device, reads_alike
from exitwise.runs.folder import Run, check_same_data, run_names
from exitwise.version import __version__

MOST_PICTURES, PER_CLASS, CHANGED = 1000, 3, 10
"""At most: thumbnails of classes in a report; easiest and as many hardest of a class; lost and as many won of a run."""


def gather(
    paths: Sequence[str | Path],
    device: str = "auto",
    *,
    calibration: str | None = None,
    monitor: str | Path | None = None,
    data: str | Path | None = None,
    splits: Splits | None = None,
) -> Report:
    """Gather a report from run folders.

    Args:
        paths: runs of the same data; calibrated and evaluated.
        device: where to run the networks and measure times.
        calibration: name of one that all of them keep.
        monitor: record of a monitor of the one run.
        data: where the runs' images lie now, if they have moved.
        splits: the runs' data, where it is loaded already.

    Raises:
        UserError: without runs, for a run that is not calibrated or not evaluated, or runs that cannot be compared.
    """
    if not paths:
        raise UserError("expected one or more run folders; got none")
    runs = [Run(path).under(calibration).at(data) for path in paths]
    _check_different(runs)
    names = run_names(runs)
    check_same_data(runs, names)
    groups = group_runs(names, [settings_of(run) for run in runs])
    records = [Record.of(run) for run in runs]
    seen = None if monitor is None else _monitored(monitor, records[0].calibration)
    place, occupied = pick_device(device), busy()
    classes = len(runs[0].classes)
    pictures = Pictures(CHANGED, pictures_per_class(classes, len(runs)))
    if runs[0].settings.tokens is not None:  # texts have none
        pictures = Pictures(0, [0] * classes)
    times: dict[tuple[Any, ...], tuple[float, ...]] = {}
    figures = []
    reader: Run | None = None
    for run, name, record in zip(runs, names, records, strict=True):
        model = run.model(place)
        if splits is None or (reader is not None and not reads_alike(run.settings, reader.settings)):
            reader, splits = run, run.splits()
        elif reader is not None:
            run.follow(splits.ledger)
        key = _network_key(run)
        if key not in times:
            times[key] = measure_exit_seconds(model)
        test = Said.collect(run, model, splits, place, record.calibration)
        figures.append(figures_of(run, name, record, test, times[key], pictures, seen))
    return Report(
        figures,
        [_comparison(label, members, figures) for label, members in groups],
        runs[0].data["sizes"],
        machine(),
        str(place),
        occupied,
        now(),
        __version__,
        runs[0].settings.noun,
    )


def _monitored(path: str | Path, calibration: Calibration) -> Monitored:
    """Return the record of a monitor, if it is of this calibration."""
    seen = read_monitored(path)
    if seen.reference != calibration.reference:
        raise UserError(
            f"expected the record of a monitor of this run's calibration; {path} is of another bundle or run"
        )
    return seen


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
    built = run.as_built()
    return run.network, run.exits, *(str(getattr(built, name)) for name in names), len(run.classes)
