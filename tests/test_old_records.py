"""What exitwise 0.1.0 wrote still works. run_v1 is of the command in its environment.json, without the very last save;
bundle_v1_plain is its export after `calibrate --budget 0.5`, bundle_v1 with `--measure patience --temperature` too."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exitwise import EarlyExitRunner, OnnxRunner, Run, evaluate
from exitwise.cli import main
from exitwise.data.sources.digits import read_digits

CASES = Path(__file__).parent / "cases"
ANSWERS = json.loads((CASES / "answers_v1.json").read_text())
"""By bundle: what `exitwise predict` said of the first digits."""

CLOSE = {"rel": 0, "abs": 1e-4}
TWO_IMAGES = {"rel": 0, "abs": 2 / 359 + 1e-9}


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(CASES / "run_v1", tmp_path / "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of the first digits."""
    folder = tmp_path_factory.mktemp("digits")
    for number, pixels in enumerate(read_digits().images[:12]):
        Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def exitwise(*words):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    assert stop.value.code == 0


def check_predictions(network, digits, out, bundle):
    exitwise("predict", network, digits, "--output", out)
    found = json.loads(out.read_text())
    for one, wanted in zip(found, ANSWERS[bundle], strict=True):
        assert one.pop("confidence") == pytest.approx(wanted["confidence"], **CLOSE)
        assert one == {key: wanted[key] for key in one} | {"file": str(digits / wanted["file"])}


def check_result(result, bundle, classes):
    wanted = ANSWERS[bundle]
    assert [classes[label] for label in result.prediction] == [each["prediction"] for each in wanted]
    assert [exit + 1 for exit in result.exit] == [each["exit"] for each in wanted]
    assert list(map(float, result.confidence)) == pytest.approx([each["confidence"] for each in wanted], **CLOSE)


def first_row(folder):
    with (folder / "metrics.csv").open() as file:
        return {key: float(value) for key, value in next(csv.DictReader(file)).items()}


def test_run_loads(run):
    opened = Run(run)
    calibration = opened.read_calibration()
    images = torch.from_numpy(read_digits().images[:12]).float()[:, None] / 16
    images = (images - opened.settings.mean[0]) / opened.settings.std[0]
    result = EarlyExitRunner(opened.model(), calibration.policy, calibration.exit_macs)(images)
    assert calibration.policy.measure.name == "patience"
    assert [row["epoch"] for row in opened.read_weights()] == [1]
    assert [exit + 1 for exit in result.exit.tolist()] == [each["exit"] for each in ANSWERS["bundle_v1"]]


def test_run_is_as_accurate_as_recorded(run):
    wanted = Run(run).read_evaluation()
    found = evaluate(run, device="cpu")
    assert found.anytime == pytest.approx(wanted.anytime, **TWO_IMAGES)
    assert found.calibrated.accuracy == pytest.approx(wanted.calibrated.accuracy, **TWO_IMAGES)
    assert (found.exit_macs, found.images) == (wanted.exit_macs, wanted.images)


def test_run_is_reported_as_it_is(run):
    exitwise("report", run, "--device", "cpu")
    assert "by patience, with temperatures" in (run / "report.html").read_text()


def test_run_predicts(run, digits, tmp_path):
    check_predictions(run, digits, tmp_path / "found.json", "bundle_v1")


@pytest.mark.slow
def test_run_is_calibrated_and_exported_again(run, digits, tmp_path):
    pytest.importorskip("onnx")
    exitwise("calibrate", run, "--budget", "0.5", "--device", "cpu")
    exitwise("export", run, "--out", tmp_path / "bundle")
    check_predictions(tmp_path / "bundle", digits, tmp_path / "found.json", "bundle_v1_plain")


def test_training_continues(run):
    command = json.loads((run / "environment.json").read_text())["command"]
    before = run / "checkpoints" / "last-00000030" / "state.json"
    saved = before.stat().st_mtime_ns
    exitwise(*command[1 : command.index("--out")], "--method", "meta-weighted", "--out", run)  # once the default
    old, new = first_row(CASES / "run_v1"), first_row(run)
    assert {name: new[name] for name in old} == pytest.approx(old, rel=1e-3, abs=2 / 359)
    assert before.stat().st_mtime_ns == saved  # so it did not begin again
    assert (run / "checkpoints" / "last-00000034").is_dir()


@pytest.mark.parametrize("bundle", ANSWERS)
def test_bundle_runs(bundle, digits, tmp_path):
    pytest.importorskip("onnxruntime")
    runner = OnnxRunner(shutil.copytree(CASES / bundle, tmp_path / "bundle"))
    images = np.stack([runner.read_image(file) for file in sorted(digits.iterdir())])
    check_result(runner.by_stages(images), bundle, runner.classes)
    check_result(runner.one_by_one(images), bundle, runner.classes)
    assert runner.reference is not None
    check_predictions(tmp_path / "bundle", digits, tmp_path / "found.json", bundle)
