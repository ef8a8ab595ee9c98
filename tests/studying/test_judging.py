"""Judging recorded answers, against loops."""

from types import SimpleNamespace

import numpy as np
import pytest

from exitwise.exiting.fitting import folds
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outputs import Outputs, budgeted_curve
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.studying import judging
from exitwise.studying.judging import judge

COSTS = (1, 3, 9)


def answers(count, seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 4, count)
    logits = generator.normal(0, 1, (count, 3, 4)) + 2 * np.eye(4)[targets][:, None] * np.arange(1, 4)[:, None]
    return logits, targets


@pytest.fixture
def run(monkeypatch):
    """A run whose splits are their own answers."""
    monkeypatch.setattr(judging, "collect_logits", lambda model, split, device: split)
    monkeypatch.setattr(judging, "count_cost", lambda model: SimpleNamespace(macs=COSTS))
    return SimpleNamespace(model=lambda place: None, settings=SimpleNamespace(workers=0))


def split_of(answers):
    return SimpleNamespace(batches=lambda *args: answers)


def curve(fitting, judged, fitted=True):
    measure = create_measure(temperatures=fit_temperatures(*fitting) if fitted else None)
    found = budgeted_curve(Outputs.from_logits(*fitting, measure), Outputs.from_logits(*judged, measure), COSTS)
    return np.array([(point.p, point.test.macs, point.test.accuracy) for point in found])


def test_to_confirm_test_images_judge_what_calibration_images_chose(run):
    held_out, test = answers(60, 0), answers(40, 1)
    found = judge(run, SimpleNamespace(calibration=split_of(held_out), test=split_of(test)), "confirm", "cpu")
    assert found.exit_macs == COSTS
    assert found.exits == pytest.approx([(test[0][:, k].argmax(1) == test[1]).mean() for k in range(3)])
    assert found.curve == pytest.approx(curve(held_out, test))
    assert found.plain_curve == pytest.approx(curve(held_out, test, fitted=False))


def test_to_select_each_part_is_judged_by_what_the_others_chose(run):
    logits, targets = held_out = answers(52, 0)
    found = judge(run, SimpleNamespace(calibration=split_of(held_out)), "select", "cpu")
    assert found.exits == pytest.approx([(logits[:, k].argmax(1) == targets).mean() for k in range(3)])
    total = 0
    for part in folds(52, 0):
        others = np.setdiff1d(np.arange(52), part)
        total += len(part) * curve((logits[others], targets[others]), (logits[part], targets[part]))
    assert found.curve == pytest.approx(total / 52)
