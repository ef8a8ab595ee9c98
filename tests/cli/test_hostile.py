"""What strangers did to the product: odd names, foreign checkpoints, edited files, interruptions."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from test_cli import TINY_RUN, assert_refused, call

from exitwise.cli import main
from exitwise.errors import Interrupted, UserError
from exitwise.runs.folder import Run, check_vacant
from exitwise.storage.lock import locked
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.trainer import Trainer
from images import make_folder, save_image

NAMES = ("dark", "grey [odd]", "[b]light")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A trained and calibrated run on classes whose names look like markup; its images."""
    root = tmp_path_factory.mktemp("odd")
    data, run = make_folder(root / "da[/b]ta", classes=NAMES), root / "run [x]"
    for command in (["train", "--data", data, "--out", run, *TINY_RUN], ["calibrate", run, "--budget", 0.6]):
        with pytest.raises(SystemExit) as stop:
            main([str(token) for token in command])
        assert stop.value.code == 0
    return data, run


@pytest.fixture
def copied(odd, tmp_path):
    return odd[0], shutil.copytree(odd[1], tmp_path / "run")


def test_names_that_look_like_markup_are_printed_as_they_are(odd, capsys):
    data, run = odd
    code, output, _ = call(capsys, "predict", run, data / NAMES[2], data / NAMES[1])
    assert code == 0
    assert "[b]light" in output
    assert "[odd]" in output


def test_a_run_works_from_another_folder(odd, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "evaluate", odd[1])[0] == 0


def test_resuming_from_a_foreign_checkpoint_is_refused(copied, capsys):
    data, run = copied
    last = max((run / "checkpoints").glob("last-*"))
    state = load_checkpoint(last)
    shutil.rmtree(last)
    save_checkpoint(last, {**state, "method": {}})
    code, _, errors = call(capsys, "train", "--data", data, "--out", run, *TINY_RUN)
    assert_refused(code, errors, "last-.* is a checkpoint of another model, method or optimizer")


def test_a_calibration_of_an_older_checkpoint_is_refused(copied, capsys):
    data, run = copied
    (best,) = (run / "checkpoints").glob("best-*")
    best.rename(run / "checkpoints" / "best-00000099")
    code, _, errors = call(capsys, "predict", run, data)
    assert_refused(code, errors, r"was made for best-.*, but the best checkpoint is now best-00000099")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", {}, "expected classes, sizes and sha256 in .*data.json"),
        ("data.json", [], "expected classes, sizes and sha256 in .*data.json"),
        ("calibration.json", {"thresholds": "555"}, "expected thresholds of exits in .*calibration.json"),
        ("calibration.json", {"thresholds": [0.5]}, "expected 3 thresholds in .*; got 1"),
        ("calibration.json", {"thresholds": [0.5, float("nan"), None]}, "expected thresholds of exits"),
    ],
)
def test_edited_files_are_refused(name, content, message, copied, capsys):
    data, run = copied
    whole = json.loads((run / name).read_text())
    edited = {**whole, **content} if name == "calibration.json" else content
    if content == {"thresholds": "555"}:
        del edited["budget"]
    (run / name).write_text(json.dumps(edited))
    code, _, errors = call(capsys, "predict", run, data)
    assert_refused(code, errors, message)


def test_replaced_images_are_noticed(tmp_path, capsys):
    data, run = make_folder(tmp_path / "data"), tmp_path / "run"
    assert call(capsys, "train", "--data", data, "--out", run, *TINY_RUN)[0] == 0
    save_image(data / "dark" / "00.png", level=250, seed=9)
    code, _, errors = call(capsys, "evaluate", run)
    assert_refused(code, errors, "expected the data that .* was trained on; the images have changed")


def test_a_bad_image_can_be_removed_and_the_command_repeated(tmp_path, capsys):
    data, run = make_folder(tmp_path / "data"), tmp_path / "run"
    for path in sorted((data / "grey").iterdir())[:9]:
        path.write_bytes(path.read_bytes()[:-30])  # the header is whole
    flags = ["--data", data, "--out", run, *TINY_RUN, "--augment", "resize"]
    code, _, errors = call(capsys, "train", *flags)
    assert_refused(code, errors, "expected at most 0.01 of the images to be broken")
    for path in sorted((data / "grey").iterdir())[:9]:
        path.unlink()
    assert call(capsys, "train", *flags)[0] == 0


def broken_run(tmp_path):
    """A folder with broken images, some of which only decoding finds, and the flags to train on it all the same."""
    data = make_folder(tmp_path / "data", count=20)
    broken = [data / name for name in ("dark/03.png", "grey/04.png", "grey/05.png", "light/11.png", "light/19.png")]
    for path in broken[:4]:
        path.write_bytes(path.read_bytes()[:-40])
    broken[4].write_bytes(b"")
    save_image(data / "dark" / "glass.png", mode="RGBA")
    flags = ["--data", data, *TINY_RUN, "--augment", "resize", "--max-broken", "0.2", "--workers", "1"]
    return data, [str(path) for path in broken], flags


def listed(run):
    with (run / "skipped_images.csv").open(newline="") as file:
        return sorted(row["path"] for row in csv.DictReader(file))


def test_broken_images_are_skipped_listed_and_left_out(tmp_path, capsys):
    _, broken, flags = broken_run(tmp_path)
    run = tmp_path / "run"
    code, output, _ = call(capsys, "train", "--out", run, *flags)
    assert code == 0
    assert "of 61 image files skipped" in output
    code, output, _ = call(capsys, "evaluate", run)
    assert code == 0
    assert listed(run) == sorted(broken)  # each split has been read in full by now
    assert json.loads((run / "images.json").read_text()) == {
        "schema": "exitwise/images",
        "version": 1,
        "images": 61,
        "skipped": {"damaged": 4, "empty": 1},
        "converted": {"alpha": 1},
    }
    evaluation = json.loads((run / "evaluation.json").read_text())
    test = json.loads((run / "data.json").read_text())["sizes"]["test"]
    assert evaluation["images"] + evaluation["left_out"] == test
    left_out = f"{evaluation['left_out']} broken test images left out"
    assert (left_out in output) == (evaluation["left_out"] > 0)
    assert call(capsys, "calibrate", run, "--budget", 0.6)[0] == 0
    before = (run / "skipped_images.csv").read_bytes()
    assert call(capsys, "train", "--out", run, *flags)[0] == 0
    assert (run / "skipped_images.csv").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_met_broken_images_resumes_to_the_same_bits(tmp_path, capsys, monkeypatch):
    _, _, flags = broken_run(tmp_path)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert call(capsys, "train", "--out", whole, *flags)[0] == 0
    train_on = Trainer.train_on

    def interrupted(self, inputs, targets):
        train_on(self, inputs, targets)
        if self.progress.iteration == 3:
            self._save("last")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_on", interrupted)
        assert call(capsys, "train", "--out", halted, *flags)[0] == 130
    assert call(capsys, "train", "--out", halted, *flags)[0] == 0
    assert listed(whole) == listed(halted)
    assert (whole / "images.json").read_bytes() == (halted / "images.json").read_bytes()
    states = [Run(path).model().state_dict() for path in (whole, halted)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.slow
def test_a_run_that_stopped_for_broken_images_may_allow_more(tmp_path, capsys):
    _, broken, flags = broken_run(tmp_path)
    run = tmp_path / "run"
    strict = [
        1.5 / 61 if before == "--max-broken" else token for before, token in pairwise(["", *flags])
    ]  # one is empty
    code, _, errors = call(capsys, "train", "--out", run, *strict)
    assert_refused(code, errors, r"\(max_broken\); got [23] of 61: .*light/19.png \(empty: ")
    assert set(listed(run)) < set(broken)
    assert call(capsys, "train", "--out", run, *flags)[0] == 0
    assert call(capsys, "evaluate", run)[0] == 0
    assert listed(run) == sorted(broken)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "path,kind,reason\n1,2\n", '"' * 200_001])
def test_a_list_of_skipped_images_that_is_none_is_refused(content, copied, capsys):
    run = copied[1]
    (run / "skipped_images.csv").write_text(content)
    code, _, errors = call(capsys, "evaluate", run)
    assert_refused(code, errors, "expected a table of path, kind, reason in .*skipped_images.csv; got something else")


def test_ctrl_c_says_so(tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("exitwise.workflows.train.train", interrupt)
    code, _, errors = call(capsys, "train", "--out", tmp_path / "run")
    assert code == 130
    assert "interrupted" in errors


def test_sigterm_has_an_exit_code_of_its_own(tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("exitwise.workflows.train.train", stop)
    code, _, errors = call(capsys, "train", "--out", tmp_path / "run")
    assert code == 143
    assert errors == "exitwise: stopped by SIGTERM; all steps are saved, and the same `train` command continues\n"


def test_a_run_is_continued_unless_that_is_forbidden(copied, capsys):
    data, run = copied
    command = ["train", "--data", data, "--out", run, *TINY_RUN]
    code, _, errors = call(capsys, *command, "--resume", "never")
    assert_refused(code, errors, r"holds a run: continue it with --resume auto, or choose another --out")
    assert call(capsys, *command, "--resume", "auto", "--keep-checkpoints", 5)[0] == 0
    code, _, errors = call(capsys, *command, "--resume", "always")
    assert_refused(code, errors, "--resume.*auto.*never")


def test_a_run_among_its_images_is_refused(copied, capsys):
    data, _ = copied
    code, _, errors = call(capsys, "train", "--data", data, "--out", data / "run", *TINY_RUN)
    assert_refused(code, errors, "expected a run folder outside the images' folder .*; got .*run")
    assert not (data / "run").exists()


def test_a_run_that_another_process_writes_to_is_refused(copied, capsys):
    data, run = copied
    imports = "import time; from pathlib import Path; from exitwise.storage.lock import locked"
    hold = f"{imports}\nwith locked(Path({str(run)!r})):"
    with subprocess.Popen([sys.executable, "-c", f"{hold} print(flush=True); time.sleep(60)"], stdout=-1) as other:
        other.stdout.readline()
        code, _, errors = call(capsys, "train", "--data", data, "--out", run, *TINY_RUN)
        other.kill()
    assert_refused(code, errors, f"run is being written by process {other.pid} on .*: wait for it, or choose another")


def test_a_training_killed_at_its_very_start_can_be_repeated(copied, tmp_path):
    settings = Run(copied[1]).settings
    begun = tmp_path / "begun"
    with locked(begun):
        check_vacant(begun, settings)
    for name in ("data.json", ".config.yaml.x8s2"):
        (begun / name).write_text("{")
    check_vacant(begun, settings)
    (begun / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="it holds something else"):
        check_vacant(begun, settings)


def test_damaged_checkpoints(copied, capsys):
    data, run = copied
    last, best = (max((run / "checkpoints").glob(f"{kind}-*")) for kind in ("last", "best"))
    weights = load_checkpoint(last)["model"]
    for path in (last, best):
        with (path / "tensors.safetensors").open("r+b") as file:
            file.write(b"?")
    code, _, errors = call(capsys, "evaluate", run)
    assert_refused(code, errors, r"best-.* is damaged: .* \(the best epoch is in no other: restore a copy, or train")
    debris = run / "checkpoints" / ".last-00000099.tmp"
    debris.mkdir()
    (run / ".calibration.json.x8s2").write_text("{")
    code, _, errors = call(capsys, "train", "--data", data, "--out", run, *TINY_RUN)
    assert code == 0
    damaged, few = errors.splitlines()
    assert re.fullmatch(r"exitwise: warning: .*last-.* is damaged: .*; continuing from last-.* before it", damaged)
    assert few.startswith("exitwise: warning: 6 calibration images are few: ")
    assert sorted(path.name for path in run.rglob(".*")) == [".lock"]
    torch.testing.assert_close(load_checkpoint(last)["model"], weights, rtol=0, atol=0)


def test_divergence_is_one_line(tmp_path, capsys):
    data, out = make_folder(tmp_path / "data"), tmp_path / "run"
    changed = {"--lr": "1e30", "--epochs": "10"}
    flags = [changed.get(before, token) for before, token in pairwise(["", *map(str, TINY_RUN)])]
    code, _, errors = call(capsys, "train", "--data", data, "--out", out, *flags)
    assert_refused(code, errors, "10 steps in a row had a loss or gradient that is not finite.* a lower lr may help")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", ""], "there is no ''"),
        (["--recipe", "images"], "this recipe needs a folder of images: give --data"),
        (["--mean", "nan"], "setting mean.0: input should be a finite number"),
        (["--seed", "99999999999999999999"], "setting seed: "),
    ],
)
def test_odd_flags(flags, message, tmp_path, capsys):
    code, _, errors = call(capsys, "train", "--out", tmp_path / "run", *flags)
    assert_refused(code, errors, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["data: [a]", "recipe: 5", "recipe: [a]"])
def test_odd_yaml(content, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(content)
    code, _, errors = call(capsys, "train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert_refused(code, errors, "input should be a (name|valid string); got")


def test_an_output_below_a_file_is_bad_input(odd, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, errors = call(capsys, "predict", odd[1], odd[0], "--output", tmp_path / "file" / "x.csv")
    assert_refused(code, errors, "file")
