"""Which budget to choose: what to type for it, and what it gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

from exitwise.catalogue.measures import USUAL_MEASURE
from exitwise.deploy.asked import Asked
from exitwise.deploy.calibrating import Costs, Recorded, calibrated
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.exiting.measures import Measure
from exitwise.exiting.outcome import TOLERANCE
from exitwise.runs.folder import Run
from exitwise.shown import pasteable


def budget_command(run: Run, budget: float, calibration: Calibration) -> str:
    """Return what calibrates a run for a share of MACs, as it is calibrated now."""
    most = calibration.exit_macs[-1] / calibration.full_macs
    return _command(run, "--budget", min(math.ceil(1e4 * budget - 1e-6) / 1e4, most), calibration)


def drop_command(run: Run, calibration: Calibration) -> str:
    """Return what calibrates a run for the usual loss."""
    return _command(run, "--max-accuracy-drop", TOLERANCE, calibration)


def _command(run: Run, option: str, value: float, calibration: Calibration) -> str:
    name = [] if run.name is None else ["--name", run.name]
    words = ["exitwise", "calibrate", str(run.path), option, f"{value:.6g}", *_flags(calibration), *name]
    origin = calibration.origin
    data = run.moved_to if origin is None or origin.data is None else origin.data
    return pasteable(*words, *([] if data is None else ["--data", str(data)]))


def _flags(calibration: Calibration) -> Sequence[str]:
    measure, kind = calibration.policy.measure, calibration.thresholding
    flags = [] if measure.name == USUAL_MEASURE else ["--measure", measure.name]
    if _has_temperatures(measure):
        flags.append("--temperature")
    if calibration.policy.abstain_below is not None:
        flags += ["--abstain-below", f"{calibration.policy.abstain_below:.9g}"]
    if calibration.drop_from != "best":
        flags += ["--drop-from", calibration.drop_from]
    return flags if kind is None else [*flags, "--thresholds", kind]


def _has_temperatures(measure: Measure) -> bool:
    return measure.temperatures is not None and not measure.fits_temperatures


def cheapest(calibration: Calibration, held: Recorded) -> Calibration | None:
    """Return the cheapest calibration within a point on the held-out images, read in the same way; None where the
    calibration is for a drop already, or there is nothing to choose."""
    if "max_accuracy_drop" in calibration.budget or calibration.policy.exits == 1:
        return None
    measure = calibration.policy.measure
    asked = Asked(
        {"max_accuracy_drop": TOLERANCE},
        drop_from=calibration.drop_from,
        thresholds=calibration.thresholding,
        measure=measure.name,
        abstain_below=calibration.policy.abstain_below,
        temperature=_has_temperatures(measure),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was calibrated
        try:
            found = calibrated(asked, held, Costs(calibration.exit_macs, calibration.full_macs))
        except UserError:
            return None
    return replace(found, network=calibration.network)
