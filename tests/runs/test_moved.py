"""A run knows its images by what they are: it goes on where they lie now, and says which have changed."""

import io
import shutil

import pytest

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import DataError, UserError
from exitwise.settings.compose import compose
from images import make_folder, save_image

TINY = {"recipe": "digits", "method": "uniform", "epochs": 1, "mean": [0.5] * 3, "std": [0.5] * 3, "device": "cpu"}


def command(capsys, *tokens):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, tokens)])
    output, errors = capsys.readouterr()
    return stop.value.code, output, errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a folder that has moved since."""
    root = tmp_path_factory.mktemp("moved")
    make_folder(root / "old" / "photos", count=20)
    run = ew.train(compose(None, flags={**TINY, "data": str(root / "old" / "photos")}), root / "run").run
    shutil.move(root / "old", root / "new")
    return run.path, root / "new" / "photos"


def copied(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run"), shutil.copytree(trained[1], tmp_path / "photos")


def test_every_command_takes_the_place_where_images_lie_now(trained, tmp_path):
    """Once a folder had moved, a run could be neither calibrated nor evaluated nor shown."""
    run, photos = copied(trained, tmp_path)
    for call in (lambda: ew.evaluate(run), lambda: ew.calibrate(run, budget=0.6)):
        with pytest.raises(UserError, match=r"lay at .*old/photos, where nothing is now: say with --data where"):
            call()
    calibration = ew.calibrate(run, data=photos, budget=0.6)
    assert calibration.budget == {"budget": 0.6}
    assert ew.evaluate(run, data=photos).images == 12
    assert ew.report(run, tmp_path / "page.html", data=photos).path.is_file()
    assert ew.bench(run, data=photos, forms="eager", batch_sizes=[1], seconds=0.1, tell=str).rows
    with pytest.raises(UserError, match=r"expected the images of .* at .*nowhere; found nothing"):
        ew.evaluate(run, data=tmp_path / "nowhere")


def test_the_images_that_have_changed_are_named(trained, tmp_path):
    run, photos = copied(trained, tmp_path)
    (photos / "dark" / "03.png").unlink()
    (photos / "grey" / "04.png").unlink()
    save_image(photos / "light" / "new.png")
    save_image(photos / "light" / "05.png", seed=4321)
    said = (
        r"changed: 2 gone \(dark/03.png, grey/04.png\), 1 new \(light/new.png\), 1 with other content \(light/05.png\)$"
    )
    with pytest.raises(UserError, match=said):
        ew.evaluate(run, data=photos)
    with pytest.raises(UserError, match="the images have changed: 2 gone"):
        ew.train(compose(None, flags={**TINY, "data": str(photos)}), run)
    with pytest.raises(DataError, match=r"or others that it was not trained on, in .*; it was trained on 3\d of 59"):
        ew.calibrate(run, data=photos, budget=0.6)


def test_other_images_calibrate_too(trained, tmp_path):
    run, _ = copied(trained, tmp_path)
    for c, name in enumerate(("dark", "grey", "light")):
        for k in range(10):
            save_image(tmp_path / "others" / name / f"{k:02d}.png", level=60 + 70 * c, seed=9000 + 100 * c + k)
    assert len(ew.calibrate(run, data=tmp_path / "others", budget=0.6).policy.thresholds) == 3


def test_out_alone_goes_on_by_the_runs_own_settings(trained, tmp_path, capsys):
    """It listed seventeen settings that differed from those of another recipe."""
    run, photos = copied(trained, tmp_path)
    code, _, errors = command(capsys, "train", "--out", run)
    assert (code, "where nothing is now: say with --data" in errors) == (2, True)
    code, output, _ = command(capsys, "train", "--out", run, "--data", photos)
    assert code == 0
    assert "continued at step 1 of 1" in output
    assert ew.Run(run).settings.data == str(photos)
    assert command(capsys, "train", "--out", run)[0] == 0
    code, _, errors = command(capsys, "train", "--out", run, "--lr", "0.5")
    assert (code, errors.count("\n"), "other settings: lr" in errors) == (2, 1, True)


def test_a_run_is_extended(trained, tmp_path, capsys):
    run, photos = copied(trained, tmp_path)
    code, output, _ = command(capsys, "train", "--out", run, "--data", photos, "--extend-to", "3", "--workers", "1")
    assert code == 0
    assert "continued at step 1 of 3" in output
    assert len((run / "metrics.csv").read_text().splitlines()) == 4
    assert ew.Run(run).settings.epochs == 3
    for tokens, said in {
        ("--out", run, "--extend-to", "3"): "expected more epochs than the 3",
        ("--out", run, "--extend-to", "5", "--seed", "3"): "other settings: seed",
        ("--out", run, "--epochs", "5"): "(more epochs: --extend-to)",
        ("--out", tmp_path / "none", "--extend-to", "5"): "--extend-to goes with --out RUN",
    }.items():
        code, _, errors = command(capsys, "train", *tokens)
        assert (code, errors.count("\n")) == (2, 1)
        assert said in errors


def test_names_that_no_console_and_no_page_knows(tmp_path, capsys, monkeypatch):
    """A class whose name is not UTF-8 had no report; one that a console's encoding lacks ended `evaluate`."""
    root = make_folder(tmp_path / "photos", count=20)
    (root / "grey").rename(root / "caf\udce9")
    (root / "dark").rename(root / "猫")
    run = ew.train(compose(None, flags={**TINY, "data": str(root)}), tmp_path / "run").run
    ew.calibrate(run, budget=0.6)
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", console)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run.path)])
    assert stop.value.code == 0
    console.flush()
    assert rb"caf\udce9" in console.buffer.getvalue()
    assert ew.report(run, figures=tmp_path / "figures").figures
    assert r"caf\udce9" in (run.path / "report.html").read_text(encoding="utf-8")
