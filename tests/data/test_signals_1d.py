"""Signals in place of images: made data, and the way of a run on them."""

import hashlib

import numpy as np
import pytest
import torch

import exitwise as ew
from exitwise.catalogue.sources import SOURCES
from exitwise.data.sources import open_source
from exitwise.data.sources.mnist1d import HEIGHT, SHAPES, signals
from exitwise.errors import DataError, UserError
from exitwise.models import create_model


def test_signals_are_the_same_wherever_they_are_made():
    train = open_source("mnist1d", channels=1, image_size=40).train
    digest = hashlib.sha256(train.images.numpy().tobytes()).hexdigest()
    assert digest == "c0a66dab12c415dea3bb53a855078986a2fa955e2352b96bec9b4a3f1e771b30"


def test_a_signal_is_the_shape_of_its_class_somewhere_on_the_line(monkeypatch):
    for name in ("SMOOTH_NOISE", "NOISE", "SLOPE", "SCALE"):
        monkeypatch.setattr(f"exitwise.data.sources.mnist1d.{name}", 0.0)
    monkeypatch.setattr("exitwise.data.sources.mnist1d.PADDING", (28, 28))
    targets = np.arange(30) % 10
    for signal, target in zip(signals(targets, 0), targets, strict=True):
        shape = np.zeros(40)
        shape[:12] = (np.array(SHAPES[target]) - np.mean(SHAPES[target])) / HEIGHT
        assert any(np.allclose(np.roll(shape, places), signal) for places in range(40))


@pytest.mark.slow
def test_a_run_on_signals_from_training_to_a_bundle(tmp_path):
    settings = ew.compose("mnist1d", flags={"max_iterations": 2, "device": "cpu"})
    run = ew.train(settings, tmp_path / "run").run
    assert run.model().input_shape == (1, 1, 40)
    calibration = ew.calibrate(run, budget=0.5)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"expected a run on images; .* is of signals"):
        ew.predict(run, [tmp_path / "a.png"])
    ew.export(run, tmp_path / "bundle", format="onnx")
    bundle = ew.OnnxRunner(tmp_path / "bundle")
    assert [(each.shape[1:], each.preprocessing) for each in bundle.inputs] == [((1, 1, 40), None)]
    inputs = torch.randn(6, 1, 1, 40)
    ours = ew.EarlyExitRunner(run.model(), calibration.policy, calibration.exit_macs)(inputs)
    assert bundle(inputs.numpy()).prediction.tolist() == ours.prediction.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": "crop"}, "augment is for images; mnist1d has signals"),
        ({"image_size": 8}, "mnist1d has signals of 40 values; got image_size 8"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "mnist1d has 1 channels; got mean and std of 3"),
    ],
)
def test_what_does_not_go_with_signals_is_said_in_a_line(values, message):
    with pytest.raises(UserError, match=message):
        ew.compose("mnist1d", flags=values)


def test_signals_are_not_resized():
    with pytest.raises(DataError, match="mnist1d has signals of 40 values; got image_size any"):
        open_source("mnist1d", channels=1)


@pytest.mark.parametrize("shape", [(1, 1, SOURCES["mnist1d"].side), (3, 16, 16)])
def test_a_wide_network_takes_signals_and_images(shape):
    model = create_model("wide_signals", input_shape=shape, num_classes=3)
    assert [logits.shape for logits in model(torch.randn(2, *shape))] == [(2, 3)] * model.exits
    with pytest.raises(ValueError, match="expected sides of 16 or more, which are halved 4 times; got "):
        create_model("wide_signals", input_shape=(1, 8, 8))
