"""Long-tailed training images: counts by the formula, test images as they are, and losses that know of them."""

from importlib import import_module

import numpy as np
import pytest
import torch

import exitwise as ew
from exitwise.data import Preprocessing
from exitwise.data.splits import load, long_tailed
from exitwise.workflows.evaluate import by_frequency

training = import_module("exitwise.workflows.train")  # whose name the package gives to the function


def test_counts_fall_exponentially():
    targets = torch.arange(5).repeat(1000)
    kept = long_tailed(targets, 0.01, seed=3)
    assert targets[kept].bincount().tolist() == [1000, 316, 100, 32, 10]
    assert torch.equal(kept, long_tailed(targets, 0.01, seed=3))
    assert not torch.equal(kept, long_tailed(targets, 0.01, seed=4))
    assert torch.equal(long_tailed(targets, 1.0, seed=3), torch.arange(5000))
    assert long_tailed(torch.tensor([0, 0, 1]), 0.001, seed=0).tolist() == [0, 1, 2]


def test_what_is_held_out_is_long_tailed_and_what_tests_is_not():
    digits = Preprocessing(8, (0.3,), (0.4,))
    whole, tailed = (load("digits", digits, calibration_fraction=0.2, imbalance=each) for each in (1.0, 0.1))
    for name in ("train", "calibration"):
        counts = getattr(tailed, name).targets.bincount()
        assert float(counts[-1] / counts[0]) == pytest.approx(0.1, abs=0.05)
        assert set(getattr(tailed, name).indices.tolist()) < set(getattr(whole, name).indices.tolist())
    assert torch.equal(tailed.test.indices, whole.test.indices)


def test_a_run_with_a_long_tail_tells_its_loss_and_evaluates_by_frequency(tmp_path, monkeypatch):
    told = []
    build = training.build_loss
    monkeypatch.setattr(training, "build_loss", lambda *given: told.append(given[-1]) or build(*given))
    flags = {"imbalance": 0.1, "loss": "logit-adjusted", "max_iterations": 1}
    ew.train(ew.compose("digits", flags=flags), tmp_path / "run")
    assert told == [ew.Run(tmp_path / "run").splits().train.targets.bincount().tolist()]
    ew.calibrate(tmp_path / "run", budget=0.7)
    assert [group.name for group in ew.evaluate(tmp_path / "run").outcome.groups] == ["few", "many", "medium"]
    targets = np.array([0, 1, 2, 3, 3])
    assert by_frequency(np.array([3, 3, 3, 1, 1, 2]), targets) == ["few", "many", "medium", "many", "many"]
