"""What the doctor finds in data sets and machines, and that its verdict is training's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exitwise as ew
from exitwise.cli import main
from exitwise.doctor import machine
from exitwise.doctor.data import examine_data
from exitwise.errors import DataError
from exitwise.settings.compose import compose
from images import broken_files, make_folder, odd_files, save_image, write_files


def doctor(capsys, *tokens):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--workers", "0", *map(str, tokens)])
    output, errors = capsys.readouterr()
    return stop.value.code, output, errors


def usual(root, **flags):
    return compose(None, flags={"data": str(root), **flags})


def found(findings, level):
    return [finding.text for finding in findings if finding.level == level]


def test_a_whole_folder_is_fine(tmp_path, capsys):
    make_folder(tmp_path, count=20)
    code, output, errors = doctor(capsys, "--data", tmp_path)
    assert (code, errors) == (0, "")
    assert "all 60 images can be read" in output
    assert "3 classes; images: 42 train, 6 calibration, 12 test" in output
    assert "all images have 8x8 pixels" in output
    assert "fine to train" in output.splitlines()[-1]


def test_every_broken_and_odd_file_is_counted(tmp_path, capsys):
    root = make_folder(tmp_path / "photos", count=20)
    broken = broken_files(tmp_path / "executed")
    paths = write_files(root / "grey", broken)
    write_files(root / "light", odd_files())
    calls = []
    findings, images = examine_data(usual(root, max_broken=1.0), 2, lambda *numbers: calls.append(numbers))
    assert calls[-1] == (len(images), len(images)) == (60 + len(broken) + len(odd_files()),) * 2
    assert {image.path: image.fault.kind for image in images if image.fault} == {
        path: kind for path, (_, _, kind) in zip(paths, broken.values(), strict=True)
    }
    assert found(findings, "problem") == []
    (text,) = [text for text in found(findings, "warning") if "skipped" in text]
    assert f"skipped {len(broken)} (" in text
    assert "9 damaged" in text
    (text,) = [text for text in found(findings, "fine") if "converted when read" in text]
    assert "2 16-bit, 2 CMYK, 3 alpha, 3 animated, 3 palette" in text
    assert not (tmp_path / "executed").exists()
    code, output, errors = doctor(capsys, "--data", root)
    assert code == 2
    assert errors == "exitwise: training would stop: see the lines above that begin with 'problem'\n"
    assert f"empty: {root}/grey/zero_bytes.jpg (the file is empty)" in output
    assert doctor(capsys, "--data", root, "--max-broken", "0.9")[0] == 0


def many_broken(root):
    for k in range(3):
        path = root / "grey" / f"{k:02d}.png"
        path.write_bytes(path.read_bytes()[:-40])


def class_broken(root):
    for path in (root / "grey").iterdir():
        path.write_bytes(path.read_bytes()[:-40])


def one_class(root):
    for name in ("dark", "light"):
        shutil.rmtree(root / name)


def tiny_class(root):
    save_image(root / "rare" / "only.png")


def no_test(root):
    for name in ("dark", "grey", "light"):
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)


def nothing(root):
    shutil.rmtree(root)


def few_to_calibrate(root):
    for name in ("dark", "grey", "light"):
        for path in sorted((root / name).iterdir())[4:]:
            path.unlink()


STOPS = {
    few_to_calibrate: "calibration needs at least 5 images, one per exit; got 3: add images, or hold out more "
    "(calibration_fraction 0.1)",
    many_broken: "got 3 of 36",
    class_broken: "class 'grey' has no readable image",
    one_class: "expected at least two class folders",
    tiny_class: "expected at least 3 images of class 'rare'",
    no_test: "expected a folder test or val beside",
    nothing: "expected a data set's name or a folder of images; there is no",
}


@pytest.mark.parametrize("spoil", STOPS, ids=lambda spoil: spoil.__name__)
def test_what_stops_training_is_a_problem(spoil, tmp_path, capsys):
    root = make_folder(tmp_path / "photos")
    spoil(root)
    code, output, errors = doctor(capsys, "--data", root)
    assert code == 2
    assert "training would stop" in errors
    assert STOPS[spoil] in output
    flags = ["--recipe", "digits", "--augment", "resize", "--mean", "0,0,0", "--std", "1,1,1", "--epochs", "1"]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                "--data",
                str(root),
                "--out",
                str(tmp_path / "run"),
                "--method",
                "meta-weighted",
                "--wpn-hidden",
                "8",
                *flags,
            ]
        )
    assert stop.value.code == 2


def test_copies_are_found(tmp_path):
    for part in ("train", "val", "test"):
        make_folder(tmp_path / part, count=10)
        for k, path in enumerate(sorted((tmp_path / part).rglob("*.png"))):
            save_image(path, seed=1000 * len(part) + k)
    shutil.copy(tmp_path / "train" / "grey" / "03.png", tmp_path / "test" / "grey" / "copy.png")
    shutil.copy(tmp_path / "train" / "grey" / "04.png", tmp_path / "val" / "dark" / "copy.png")
    warnings = found(examine_data(usual(tmp_path)).findings, "warning")
    assert len(warnings) == 2
    assert warnings[0].startswith("2 images are in more than one of train, val and test: ")
    assert f"{tmp_path}/train/grey/03.png = {tmp_path}/test/grey/copy.png" in warnings[0]
    assert warnings[1].startswith("1 images are in more than one class: ")


def test_copies_in_one_folder_are_found(tmp_path):
    make_folder(tmp_path)
    shutil.copy(tmp_path / "grey" / "03.png", tmp_path / "grey" / "copy.png")
    (warning,) = found(examine_data(usual(tmp_path)).findings, "warning")
    assert warning.startswith("1 images are there more than once: ")


def test_tiny_classes_sizes_and_other_files(tmp_path):
    make_folder(tmp_path)
    for k in range(4):
        save_image(tmp_path / "rare" / f"{k}.png", size=(10 + 2 * k, 6), seed=900 + k)
    (tmp_path / "grey" / "pixels.npy").write_bytes(b"")
    (tmp_path / "grey" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    findings = examine_data(usual(tmp_path)).findings
    assert found(findings, "warning") == [
        "class 'rare' has 4 readable images",
        "files that are never read: 1 .npy, 1 link without a target",
    ]
    assert any("sizes: 8 to 16 wide, 6 to 8 high, median 8x8" in text for text in found(findings, "fine"))


def test_named_data(capsys):
    code, output, _ = doctor(capsys, "--data", "digits")
    assert code == 0
    assert "10 classes; images: " in output


@pytest.mark.parametrize("flags", [["--workers", "-1"], ["--max-broken", "nan"], ["--workers", "many"]])
def test_wrong_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_machine(tmp_path):
    findings = list(machine.examine_machine(1, tmp_path / "runs" / "later"))
    assert found(findings, "problem") == []
    texts = " | ".join(finding.text for finding in findings)
    for part in (
        "Python 3.",
        "torch 2.",
        "pillow",
        "CPU core",
        "GiB free for runs",
        "shared memory",
        "1 workers started",
    ):
        assert part in texts
    assert not (tmp_path / "runs").exists()


def test_faults_of_the_machine(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("DataLoader worker (pid 7) is killed\nmore")

    monkeypatch.setattr(machine, "DataLoader", refuse)
    assert machine._worker_start(1)[:2] == (
        "problem",
        "worker processes do not start: DataLoader worker (pid 7) is killed",
    )
    assert machine._shared_memory(64 * 2**20).level == "warning"
    assert machine._threads(10_000).level == "warning"
    (tmp_path / "file").write_text("")
    assert machine._disk(tmp_path / "file").level == "problem"
    for free, level in ((2**20, "problem"), (2**30, "warning"), (2**40, "fine")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder, free=free: type("Usage", (), {"free": free}))
        assert machine._disk(tmp_path / "new").level == level


def test_it_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path))
    before = sorted(Path().rglob("*"))
    doctor(capsys, "--data", ".")
    assert sorted(Path().rglob("*")) == before


def test_training_refuses_too_few_images_before_its_first_step(tmp_path):
    """30 images in 3 classes were trained on to the end, and could not be calibrated then."""
    root = make_folder(tmp_path / "photos", count=10)
    settings = usual(root, recipe="digits", mean=[0.5] * 3, std=[0.5] * 3, calibration_fraction=0.1)
    message = "calibration needs at least 4 images, one per exit; got 3: add images, or hold out more"
    (problem,) = found(examine_data(settings).findings, "problem")
    assert problem.startswith(message)
    with pytest.raises(DataError, match=re.escape(message)):
        ew.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert found(examine_data(settings.model_copy(update={"calibration_fraction": 0.2})).findings, "problem") == []


def test_rare_classes_linked_and_passed_over_folders_are_named(tmp_path):
    root = make_folder(tmp_path / "photos")
    for k in range(120):
        save_image(root / "grey" / f"more{k}.png", seed=700 + k)
    (root / "light").rename(tmp_path / "elsewhere")
    (root / "light").symlink_to(tmp_path / "elsewhere")
    save_image(root / "dark" / ".ipynb_checkpoints" / "a.png")
    (root / "phone").mkdir()
    (root / "phone" / "a.heic").touch()
    findings = examine_data(usual(root)).findings
    warned = found(findings, "warning")
    assert "class 'light' has 12 images to 132 of 'grey': a network can be right without it" in warned
    assert any("phone holds no image that can be read, and is no class: 1 .heic" in text for text in warned)
    fine = found(findings, "fine")
    assert any(text == f"linked folders, which are followed: {root}/light" for text in fine)
    assert any(text.endswith(f"passed over: {root}/dark/.ipynb_checkpoints") for text in fine)


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def test_pictures_saved_anew_are_found_across_parts(tmp_path):
    for number, part in enumerate(("train", "test")):
        for c, name in enumerate(("a", "b")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(10):
                picture(100 * number + 10 * c + k).save(tmp_path / part / name / f"{k}.png")
    picture(3).save(tmp_path / "test" / "a" / "again.jpg", quality=80)
    picture(14).resize((70, 70)).save(tmp_path / "test" / "b" / "small.png")
    picture(5).save(tmp_path / "train" / "a" / "again.jpg")
    (text,) = [text for text in found(examine_data(usual(tmp_path)).findings, "warning") if "look like" in text]
    assert text.startswith("2 images look like another one that may judge them: ")
    assert f"{tmp_path}/train/a/3.png = {tmp_path}/test/a/again.jpg" in text
    assert f"{tmp_path}/train/b/4.png = {tmp_path}/test/b/small.png" in text
