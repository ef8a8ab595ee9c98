"""Runs and bundles calibrated on other images than their own."""

import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

import exitwise as ew
from exitwise.cli import main
from exitwise.deploy.calibrating import CalibrationWarning
from exitwise.deploy.monitor import DriftWarning
from exitwise.errors import DataError, ExitwiseWarning, UserError
from exitwise.reporting.choice import budget_command
from exitwise.runs.folder import Run
from exitwise.runs.other_images import calibrated_on

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(digits_run):
    ew.calibrate(digits_run.run.path, budget=0.5, splits=digits_run.splits)
    return digits_run


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "digits"
    ew.export(run.run.path, out)
    return out


def as_files(split, folder):
    """Write images as files, in a folder per class."""
    for position, (index, target) in enumerate(zip(split.indices.tolist(), split.targets.tolist(), strict=True)):
        place = folder / split.source.classes[target]
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray(split.source.images[index, 0].numpy()).save(place / f"{position:04}.png")
    return folder


@pytest.fixture(scope="module")
def photos(run, tmp_path_factory):
    """The test images as files."""
    return as_files(run.splits.test, tmp_path_factory.mktemp("photos"))


def test_a_bundle_and_its_run_are_calibrated_alike_and_graphs_stay(run, bundle, photos):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    kept = (run.run.path / "calibration.json").read_bytes()
    images = len(run.splits.test)
    with pytest.warns(ExitwiseWarning, match=f"{images} of {images} images in .* that the run is tested on"):
        found = ew.calibrate(run.run.path, data=photos, max_accuracy_drop=0.02, device="cpu", splits=run.splits)
    assert (found.origin.samples, found.origin.data) == (images, str(photos))
    assert str(found).endswith(f"calibrated on {images} images of {photos}")
    assert budget_command(Run(run.run.path), 0.5, found).endswith(f" --data {photos}")
    own = run.splits.calibration
    assert calibrated_on(Run(run.run.path), found, own).fingerprint() == found.origin.sha256
    gone = replace(found, origin=found.origin._replace(data="nowhere"))
    with pytest.raises(UserError, match="found nothing"):
        calibrated_on(Run(run.run.path), gone, own)
    assert Run(run.run.path).read_calibration().outcome == found.outcome
    (run.run.path / "calibration.json").write_bytes(kept)
    made = ew.calibrate_bundle(bundle, photos, max_accuracy_drop=0.02)
    assert made.policy.thresholds == pytest.approx(found.policy.thresholds, abs=1e-4)
    assert made.expected["accuracy"] == pytest.approx(found.expected["accuracy"], abs=0.01)
    assert made.outcome.paired.samples == len(run.splits.test)
    changed = {path.name for path in bundle.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"calibration.json"}
    assert ew.OnnxRunner(bundle).thresholds == made.policy.thresholds
    assert made.network == found.network
    assert (made.origin.samples, made.origin.data) == (images, str(photos))


def test_images_that_it_was_trained_on_are_known_by_their_pixels(run, tmp_path):
    folder = as_files(run.splits.train.share(0, 8), tmp_path / "photos")
    before = (run.run.path / "calibration.json").read_bytes()
    with pytest.raises(DataError, match=r"it was trained on (\d+) of \1 there, such as 0/"):
        ew.calibrate(run.run.path, data=folder, budget=0.5)
    assert (run.run.path / "calibration.json").read_bytes() == before


def test_the_command_needs_no_torch(bundle, photos):
    code = (
        "import sys; sys.modules['torch'] = None; from exitwise.cli import main; "
        f"main(['calibrate', {str(bundle)!r}, '--data', {str(photos)!r}, '--budget', '0.6'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Within 60.0 % of MACs: "), done.stdout
    assert ew.OnnxRunner(bundle).calibration.budget == {"budget": 0.6}


def test_a_damaged_calibration_is_replaced_and_a_missing_folder_is_named(run, photos, tmp_path):
    record = run.run.path / "calibration.json"
    before = record.read_bytes()
    with pytest.raises(
        DataError, match=r"expected images in a folder per class, a table or shards at .*; found nothing"
    ):
        ew.calibrate(run.run.path, data=tmp_path / "nowhere", budget=0.5)
    assert record.read_bytes() == before
    record.write_text("{")
    (photos / "0" / "broken.png").write_bytes(b"no image")
    with pytest.warns(ExitwiseWarning, match=r"1 broken images are left out, such as .*broken\.png"):
        ew.calibrate(run.run.path, data=photos, budget=0.5, splits=run.splits)
    (photos / "0" / "broken.png").unlink()
    assert Run(run.run.path).read_calibration().origin.data == str(photos)
    record.write_bytes(before)


def test_images_that_differ_are_told(run, bundle, photos, tmp_path):
    for path in photos.glob("*/*.png"):
        place = tmp_path / path.parent.name
        place.mkdir(exist_ok=True)
        pixels = Image.open(path)
        pixels.point(lambda value: 120 + value // 8).save(place / path.name)
    with pytest.warns(DriftWarning, match="differ from the calibration images"):
        ew.calibrate_bundle(bundle, tmp_path, budget=0.6)
    kept = (run.run.path / "calibration.json").read_bytes()
    with pytest.warns(DriftWarning, match="differ from the calibration images"):
        ew.calibrate(run.run.path, data=tmp_path, budget=0.6, splits=run.splits)
    (run.run.path / "calibration.json").write_bytes(kept)


def test_images_and_wishes_that_will_not_do_change_nothing(bundle, photos, tmp_path, capsys):
    before = (bundle / "calibration.json").read_bytes()
    with pytest.raises(DataError, match=r"expected a folder per class with images at .*nowhere; found none"):
        ew.calibrate_bundle(bundle, tmp_path / "nowhere", budget=0.5)
    (tmp_path / "eleven").mkdir()
    with pytest.raises(DataError, match=r"expected the classes of the bundle in .*; got the unknown 'eleven'"):
        ew.calibrate_bundle(bundle, tmp_path, budget=0.5)
    with pytest.raises(UserError, match="expected exactly one of"):
        ew.calibrate_bundle(bundle, photos)
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", str(bundle), "--data", str(photos), "--latency", "1h"])
    assert stop.value.code == 2
    assert "expected a time with its unit" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a latency must lie between .* ms; got 1e\+06 ms"):
        ew.calibrate_bundle(bundle, photos, latency=1000.0)
    assert (bundle / "calibration.json").read_bytes() == before


@pytest.mark.parametrize("temperature", [False, True])
def test_a_bundle_keeps_a_latency_by_the_time_that_it_takes_itself(bundle, photos, monkeypatch, temperature):
    """Times are those of one image on its way to each exit; given those, mean time is spent as asked for."""

    def timed(functions, rounds):
        assert [functions[exit]().exit.tolist() for exit in functions] == [[0], [1], [2], [3]]
        return dict(enumerate((0.002, 0.001, 0.006, 0.008)))  # an exit that seems quicker than the one before

    monkeypatch.setattr("exitwise.deploy.recalibrating.interleaved_medians", timed)
    before = (bundle / "calibration.json").read_bytes()
    found = ew.calibrate_bundle(bundle, photos, latency=0.004, temperature=temperature)
    assert found.exit_seconds == (0.002, 0.002, 0.006, 0.008)
    spent = sum(share * each for share, each in zip(found.expected["shares"], found.exit_seconds, strict=True))
    assert 0.0037 < spent <= 0.004
    assert "mean time on the calibration images: 4 ms, one by one" in str(found) or spent < 0.00395
    assert ew.OnnxRunner(bundle).calibration.budget == {"latency": 0.004}
    (bundle / "calibration.json").write_bytes(before)


@pytest.mark.filterwarnings("ignore::exitwise.deploy.monitor.DriftWarning")
def test_a_bundle_says_what_it_does_not_know(bundle, photos, capsys, tmp_path):
    before = (bundle / "calibration.json").read_bytes()
    found = ew.calibrate_bundle(bundle, photos, budget=0.5, answered_accuracy=0.95, guarantee=0.9)
    assert ew.OnnxRunner(bundle).calibration.policy == found.policy
    answers = ew.predict(bundle, photos)
    sure = found.policy.abstain_below
    assert [each.prediction is not None for each in answers] == [each.confidence >= sure for each in answers]
    silent = sum(each.prediction is None for each in answers)
    assert 0 < silent < len(answers) / 2
    known = [each for each in answers if each.prediction is not None]
    assert sum(each.file.split("/")[-2] == each.prediction for each in known) == found.outcome.answers.right
    assert answers.summary.endswith(f"; {silent} not answered")
    assert "I don't know" in str(answers)
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(bundle), str(photos), "--output", str(tmp_path / "labels.csv")])
    assert stop.value.code == 0
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert sum(line.split(",")[1] == "" for line in lines[1:]) == silent
    with pytest.warns(
        CalibrationWarning, match="the former calibration was with a guarantee, this one is without: gua"
    ):
        kept = ew.calibrate_bundle(bundle, photos, budget=0.6)
    assert kept.policy.abstain_below == sure, "of a bundle its own"
    with pytest.warns(CalibrationWarning, match=rf"confidences below {sure:.4f} by max-probability were not answered"):
        other = ew.calibrate_bundle(bundle, photos, budget=0.6, measure="margin")
    assert other.policy.abstain_below is None
    ew.calibrate_bundle(bundle, photos, budget=0.6, abstain_below=sure, measure="max-probability")
    assert ew.calibrate_bundle(bundle, photos, budget=0.6, abstain_below=0.3).policy.abstain_below == 0.3
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", str(bundle), "--data", str(photos), "--budget", "0.5", "--device", "cuda"])
    assert stop.value.code == 2
    assert "a bundle is calibrated on the cpu, by ONNX Runtime; got cuda" in capsys.readouterr().err
    (bundle / "calibration.json").write_bytes(before)
