"""Broken images of every kind in trainings, malicious pickles in data sets, wrong settings."""

import csv
import pickle
import time
from collections import Counter

import pytest

from exitwise.cli import main
from exitwise.runs.records.data import IMAGES
from images import Malicious, broken_files, cut, encoded, make_folder, odd_files, write_files
from wrong import FILES, FLAGS, words

TRAINING = [
    "--recipe",
    "digits",
    "--epochs",
    "1",
    "--mean",
    "0.5,0.5,0.5",
    "--std",
    "0.3,0.3,0.3",
    "--batch-size",
    "64",  # all images in one, as a rest of fewer than four is left out
]
TRAINING += ["--method", "meta-weighted", "--wpn-hidden", "16", "--device", "cpu", "--max-broken", "0.9"]


def ends(*tokens):
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    return stop.value.code


def random_cuts(dice, number):
    """Images of random formats cut at random places behind their header."""
    files = {}
    for k in range(number):
        format = dice.choice(["PNG", "JPEG", "BMP"])
        content = encoded(format, (24, 24), seed=dice.randrange(10**6))
        files[f"cut {k}"] = (f".{format.lower()}", cut(content, dice.uniform(0.7, 0.95)), "damaged")
    return files


def listed(run):
    if not (run / "skipped_images.csv").is_file():
        return {}
    with (run / "skipped_images.csv").open(newline="") as file:
        return {row["path"]: row["kind"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("augment", ["resize", "none"])
def test_broken_images(augment, tmp_path, count, report, dice, capsys):
    """Read one by one by workers, and decoded at once."""
    injected = survived = 0
    for trial in range(count(5, 1)):
        data, run = make_folder(tmp_path / f"photos{trial}", count=20), tmp_path / f"run{trial}"
        broken, odd = broken_files(tmp_path / "executed"), odd_files()
        if augment == "resize":
            broken |= random_cuts(dice, 10)
        else:  # other sizes than the settings' are refused
            broken = {name: broken[name] for name in ("truncated png", "flipped png", "zero bytes", "text", "bomb")}
        expected = {}
        for name, file in broken.items():
            (path,) = write_files(data / dice.choice(["dark", "grey", "light"]), {name: file})
            expected[str(path)] = file[2]
        write_files(data / "grey", odd)
        flags = ["--augment", augment, "--workers", dice.choice([0, 1, 2])]
        codes = [ends("train", "--data", data, "--out", run, *TRAINING, *flags), ends("evaluate", run)]
        images = IMAGES.read(run)
        converted = Counter(kind for *_, kinds in odd.values() for kind in kinds)
        exact = images == {
            "images": 60 + len(broken) + len(odd),
            "skipped": dict(sorted(Counter(expected.values()).items())),
            "converted": dict(sorted(converted.items())),
        }
        injected += len(broken)
        if codes == [0, 0] and exact:
            survived += sum(listed(run).get(path) == kind for path, kind in expected.items())
    assert not (tmp_path / "executed").exists()
    report(f"broken images, {'read one by one' if augment == 'resize' else 'in memory'}", injected, survived)


def test_malicious_pickles_in_data(tmp_path, report, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    target = tmp_path / "executed"
    poison = pickle.dumps(Malicious(target))
    data = make_folder(tmp_path / "photos", count=20)
    names = ("a.png", "b.jpg", "c.tif", "d.gif", "e.pkl", "f.npy", "g.pt", "h.pth.tar")
    for name in names:
        (data / "grey" / name).write_bytes(poison)
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
            (tmp_path / folder / name).write_bytes(poison)
    run = tmp_path / "run"
    codes = [ends("train", "--data", data, "--out", run, *TRAINING, "--augment", "resize"), ends("evaluate", run)]
    assert codes == [0, 0]
    for name in ("cifar10", "cifar100"):
        assert ends("train", "--data", name, "--data-root", tmp_path, "--out", tmp_path / name) == 2
    injected = len(names) + 2
    report("malicious pickles in data", injected, 0 if target.exists() else injected)


def test_wrong_settings(tmp_path, report, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    commands = [words(line, tmp_path) for line, _ in FLAGS.values()]
    for number, (content, _, *flags) in enumerate(FILES.values()):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        commands.append(["train", "--config", path, *flags])
    others: list[tuple] = []
    for tokens in commands:
        started = time.perf_counter()
        code = ends(*tokens)
        seconds = time.perf_counter() - started
        output, errors = capsys.readouterr()
        as_asked = code == 2 and output == "" and errors.count("\n") == 1 and "Traceback" not in errors
        if not (as_asked and seconds < 3):
            others.append((tokens, code, round(seconds, 1), output, errors))
    assert len(commands) >= 40
    assert not others
    report("wrong configs and flags (exit 2, one line, 3 s)", len(commands), len(commands) - len(others))
