"""Commands of a report ask for what the calibration was asked for; what a budget cannot keep is said."""

import shlex
from dataclasses import replace

import pytest

from exitwise.deploy.origin import Origin
from exitwise.reporting.choice import budget_command
from exitwise.reporting.render import render
from exitwise.runs.folder import Run

ANSWERS = {"risk": "answers", "accuracy": 0.9, "probability": 0.9, "holds": True, "tested": 99, "answered": 80}
LOSS = {"risk": "accuracy-drop", "each": None, "probability": 0.95, "holds": True, "tested": 99, "mean_loss": 0.0}


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"drop_from": "full"}, ["--drop-from", "full"]),
        ({"guarantee": ANSWERS}, ["--answered-accuracy", "0.9", "--guarantee", "0.9"]),
        ({"guarantee": LOSS}, []),
        ({"thresholding": "same"}, ["--thresholds", "same"]),
    ],
)
def test_flags_are_those_of_the_calibration(report, runs, changes, flags):
    calibration = replace(report.runs[0].calibration, **changes)
    words = shlex.split(budget_command(Run(runs.uniform), 0.5, calibration))
    assert words[5:] == flags
    moved = Run(runs.uniform)
    moved.moved_to = "elsewhere"
    assert shlex.split(budget_command(moved, 0.5, calibration))[5:] == [*flags, "--data", "elsewhere"]


def test_a_guarantee_that_a_budget_cannot_keep_is_said(report):
    first, *rest = report.runs
    promised = replace(first, calibration=replace(first.calibration, guarantee=LOSS))
    assert "without the guarantee" not in render(report)
    assert "To calibrate the run so, without the guarantee:" in render(replace(report, runs=[promised, *rest]))


def test_images_from_elsewhere_and_a_busy_machine_are_said(report):
    first, *rest = report.runs
    elsewhere = replace(first.calibration, origin=Origin(64, "0" * 64, "new_photos"))
    page = render(replace(report, runs=[replace(first, calibration=elsewhere), *rest], busy="load 3.1 on 2 cores"))
    assert f"Thresholds of {first.name} come from 64 images of new_photos." in page
    assert "Other thresholds and temperatures come from" in page
    assert "Other work was running when times were measured (load 3.1 on 2 cores): they mean little." in page
    assert "Other work" not in render(replace(report, busy=""))
