"""Commands of a report ask for what the calibration was asked for; what a budget cannot keep is said."""

import shlex
from dataclasses import replace

import pytest

import exitwise as ew
from exitwise.cli import main
from exitwise.deploy.origin import Origin
from exitwise.reporting.choice import budget_command, cheapest, drop_command
from exitwise.reporting.one_run import Said
from exitwise.reporting.render import render
from exitwise.runs.folder import Run

LOSS = {"risk": "accuracy-drop", "each": None, "probability": 0.95, "holds": True, "tested": 99, "mean_loss": 0.0}


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"drop_from": "full"}, ["--drop-from", "full"]),
        ({"guarantee": LOSS}, []),
        ({"thresholding": "same"}, ["--thresholds", "same"]),
    ],
)
def test_flags_are_those_of_the_calibration(report, runs, changes, flags):
    calibration = replace(report.runs[0].calibration, **changes)
    words = shlex.split(budget_command(Run(runs.uniform), 0.5, calibration))
    assert words[5:] == flags
    limited = replace(calibration, policy=calibration.policy.abstaining(0.625))
    assert "--abstain-below 0.625" in budget_command(Run(runs.uniform), 0.5, limited)
    moved = Run(runs.uniform)
    moved.moved_to = "elsewhere"
    assert shlex.split(budget_command(moved, 0.5, calibration))[5:] == [*flags, "--data", "elsewhere"]


def test_a_guarantee_that_a_budget_cannot_keep_is_said(report):
    first, *rest = report.runs
    promised = replace(first, calibration=replace(first.calibration, guarantee=LOSS))
    assert "without the guarantee" not in render(report)
    assert "To calibrate the run so, without the guarantee:" in render(replace(report, runs=[promised, *rest]))


def test_what_the_page_offers_can_be_typed(report, runs, copied):
    calibration = ew.calibrate(copied, budget=0.5, answered_accuracy=0.6, guarantee=0.8, splits=runs.splits)
    held = Said.collect(Run(copied), Run(copied).model(), runs.splits, "cpu", calibration).held
    offered = cheapest(calibration, held)
    words = shlex.split(drop_command(Run(copied), calibration))
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert stop.value.code == 0
    found = Run(copied).read_calibration()
    assert found.policy.thresholds == pytest.approx(offered.policy.thresholds, abs=1e-6)
    assert found.policy.abstain_below == pytest.approx(calibration.policy.abstain_below, abs=1e-6)


def test_images_from_elsewhere_and_a_busy_machine_are_said(report):
    first, *rest = report.runs
    elsewhere = replace(first.calibration, origin=Origin(64, "0" * 64, "new_photos"))
    moved = replace(first, calibration=elsewhere, gone="found nothing")
    page = render(replace(report, runs=[moved, *rest], busy="load 3.1 on 2 cores"))
    assert "These cannot be looked at now, so no other choice is named: found nothing." in page
    assert f"Thresholds of {first.name} come from 64 images of new_photos." in page
    assert "Other thresholds and temperatures come from" in page
    assert "Other work was running when times were measured (load 3.1 on 2 cores): they mean little." in page
    assert "Other work" not in render(replace(report, busy=""))
