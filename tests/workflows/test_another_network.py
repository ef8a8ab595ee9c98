"""A calibration of one network is refused for another with the same exits and costs, whatever it is used for."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.deploy.anew import calibrated_anew
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import CALIBRATION
from exitwise.errors import UserError

CASES = Path(__file__).parents[1] / "cases"
OTHER = "expected the calibration of this network; got that of one with other weights"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Conv2d(i, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for i in (1, 4)]
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return ew.add_exits(network, exits=2, input_shape=(1, 8, 8)).eval()


def loader(seed):
    numbers = torch.Generator().manual_seed(seed)
    return [(torch.randn(40, 1, 8, 8, generator=numbers), torch.arange(40) % 3)]


@pytest.fixture(scope="module")
def calibration(model):
    with pytest.warns(ew.ExitwiseWarning):  # few samples, exits as they were made
        return ew.calibrate(model, loader(0), p=1)


@pytest.fixture
def other(model):
    """The same network after a step of training on one weight."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.stages[0].head.parameters()).view(-1)[0] += 1e-4
    return other


def test_another_network_of_the_same_costs_is_refused(model, other, calibration, tmp_path):
    assert other.exit_macs == model.exit_macs
    beside = {"other": (other, calibration)}
    for call in (
        lambda: ew.evaluate(other, calibration, loader(1)),
        lambda: ew.export(other, calibration, tmp_path / "bundle"),
        lambda: ew.bench(other, calibration, loader(1), forms="eager", seconds=0.01),
        lambda: ew.bench(model, calibration, loader(1), beside=beside, forms="eager", seconds=0.01),
    ):
        with pytest.raises(UserError, match=f"^{OTHER}$"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_same_weights_are_taken_whoever_holds_them(model, calibration):
    wrapped = copy.deepcopy(model)
    wrapped.stages[0].body = torch.compile(wrapped.stages[0].body, backend="eager")
    for same in (copy.deepcopy(model), wrapped, copy.deepcopy(model).to(memory_format=torch.channels_last)):
        calibration.check_network(same)


def test_statistics_count_as_weights(other, model, calibration):
    moved = copy.deepcopy(model).train()
    moved(loader(2)[0][0])
    with pytest.raises(UserError, match=OTHER):
        calibration.check_network(moved.eval())


def test_one_in_eight_bits_is_not_that_of_the_network(model, calibration):
    logits = torch.randn(40, 2, 3).numpy()
    anew = calibrated_anew(
        calibration,
        Recorded.of_numbered_classes(logits, loader(0)[0][1].numpy()),
        logits[:, 0].argmax(-1),
        "eight bits (static)",
    )
    with pytest.raises(UserError, match=OTHER):
        anew.check_network(model)


def test_it_is_recorded_and_records_without_it_are_read(calibration, model, other, tmp_path):
    CALIBRATION.write(tmp_path, calibration)
    CALIBRATION.read(tmp_path).check_network(model)
    with pytest.raises(UserError, match=OTHER):
        CALIBRATION.read(tmp_path).check_network(other)
    path = CALIBRATION.path(tmp_path)
    content = json.loads(path.read_text())
    del content["network"]
    path.write_text(json.dumps(content))
    CALIBRATION.read(tmp_path).check_network(other)


def test_a_run_refuses_the_calibration_of_another(tmp_path):
    run = shutil.copytree(CASES / "run_v1", tmp_path / "run")
    path = CALIBRATION.path(run)
    path.write_text(json.dumps({**json.loads(path.read_text()), "network": "0" * 64}))
    said = f"^{re.escape(str(path))} was made for a network with other weights than this run's: run `exitwise calibrate"
    for call in (
        lambda: ew.evaluate(run, device="cpu"),
        lambda: ew.export(run, tmp_path / "bundle"),
        lambda: ew.predict(run, np.zeros((8, 8), np.uint8), device="cpu"),
        lambda: ew.bench(run, forms="eager", seconds=0.01, device="cpu"),
    ):
        with pytest.raises(UserError, match=said):
            call()
