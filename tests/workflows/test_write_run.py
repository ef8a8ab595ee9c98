"""A run folder of a network that was trained elsewhere: commands work on it, and what does not fit is refused."""

import pytest
import timm
import torch

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import DataError, UserError
from exitwise.runs.build import load_splits
from images import make_folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    photos = make_folder(tmp_path_factory.mktemp("given") / "photos", count=40, size=(40, 40))
    flags = {"data": str(photos), "model": "timm/resnet10t", "pretrained": "none", "image_size": 32, "device": "cpu"}
    return ew.compose(flags={**flags, "workers": 0, "exits": 3}, recipe=None)


@pytest.fixture(scope="module")
def model(given):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=3).eval()
    model = ew.add_exits(network, exits=3, input_shape=(3, 32, 32)).eval()
    ew.fit_exits(model, load_splits(given).train.batches(16), epochs=2)
    return model


@pytest.mark.slow
def test_every_command_works_on_it(given, model, tmp_path, capsys):
    splits = load_splits(given)
    calibration = ew.calibrate(model, splits.calibration.batches(16), budget=0.6)
    run = ew.write_run(model, given, tmp_path / "run", calibration=calibration)
    assert run.read_calibration().policy == calibration.policy
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert all(map(torch.equal, run.model()(images), model(images)))
    expected = ew.evaluate(model, calibration, splits.test.batches(16))
    assert ew.evaluate(run).calibrated == expected.calibrated
    for command in ("calibrate {} --budget 0.7", "evaluate {}", "predict {} {}/dark"):
        with pytest.raises(SystemExit) as stop:
            main(command.format(run.path, given.data).split())
        assert stop.value.code == 0, capsys.readouterr().err


def test_what_does_not_fit_is_refused(given, model, tmp_path):
    other = ew.add_exits(timm.create_model("resnet10t", num_classes=4).eval(), exits=3, input_shape=(3, 32, 32))
    with pytest.raises(UserError, match="expected the network that the settings name, timm/resnet10t with exits at"):
        ew.write_run(other, given, tmp_path / "run")
    with pytest.raises(UserError, match="expected a network that add_exits made; got a MSDNet"):
        ew.write_run(ew.create_model("msdnet_small"), given, tmp_path / "run")
    seen = given.model_copy(update={"split_seed": 1})
    with pytest.raises(
        DataError, match="expected samples in the calibration images of the run that nothing was fitted"
    ):
        ew.write_run(model, seen, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds something else"):
        ew.write_run(model, given, tmp_path / "run")
