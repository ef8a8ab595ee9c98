"""What the doctor finds in data sets and machines, and that its verdict is training's."""

import shutil
from pathlib import Path

import pytest

from exitwise.cli import main
from exitwise.doctor import machine
from exitwise.doctor.data import examine_data
from images import broken_files, make_folder, odd_files, save_image, write_files


def doctor(capsys, *tokens):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--workers", "0", *map(str, tokens)])
    output, errors = capsys.readouterr()
    return stop.value.code, output, errors


def found(findings, level):
    return [finding.text for finding in findings if finding.level == level]


def test_a_whole_folder_is_fine(tmp_path, capsys):
    make_folder(tmp_path)
    code, output, errors = doctor(capsys, "--data", tmp_path)
    assert (code, errors) == (0, "")
    assert "all 36 images can be read" in output
    assert "3 classes; images: 27 train, 3 calibration, 6 test" in output
    assert "all images have 8x8 pixels" in output
    assert "fine to train" in output.splitlines()[-1]


def test_every_broken_and_odd_file_is_counted(tmp_path, capsys):
    root = make_folder(tmp_path / "photos")
    broken = broken_files(tmp_path / "executed")
    paths = write_files(root / "grey", broken)
    write_files(root / "light", odd_files())
    calls = []
    findings, images = examine_data(str(root), 1.0, 2, lambda *numbers: calls.append(numbers))
    assert calls[-1] == (len(images), len(images)) == (36 + len(broken) + len(odd_files()),) * 2
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


STOPS = {
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
    warnings = found(examine_data(str(tmp_path), 0.01).findings, "warning")
    assert len(warnings) == 2
    assert warnings[0].startswith("2 images are in more than one of train, val and test: ")
    assert f"{tmp_path}/train/grey/03.png = {tmp_path}/test/grey/copy.png" in warnings[0]
    assert warnings[1].startswith("1 images are in more than one class: ")


def test_copies_in_one_folder_are_found(tmp_path):
    make_folder(tmp_path)
    shutil.copy(tmp_path / "grey" / "03.png", tmp_path / "grey" / "copy.png")
    (warning,) = found(examine_data(str(tmp_path), 0.01).findings, "warning")
    assert warning.startswith("1 images are there more than once: ")


def test_tiny_classes_sizes_and_other_files(tmp_path):
    make_folder(tmp_path)
    for k in range(4):
        save_image(tmp_path / "rare" / f"{k}.png", size=(10 + 2 * k, 6), seed=900 + k)
    (tmp_path / "grey" / "pixels.npy").write_bytes(b"")
    (tmp_path / "grey" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    findings = examine_data(str(tmp_path), 0.01).findings
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
