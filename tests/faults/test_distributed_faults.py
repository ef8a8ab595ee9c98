"""Several processes: one of them is killed or stopped; a run goes on with another number of processes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import FEW, SHARED, WEIGHTED, all_finite, newest, same, tiny_network

import exitwise as ew
from exitwise.processes.ranks import ALONE
from exitwise.runs.folder import Run
from exitwise.training.checkpoint import load_checkpoint
from images import cut, encoded, make_folder, write_files
from shards import shards_of_folder
from two_processes import CASES, steps

PROGRAM = str(Path(__file__).with_name("rank.py"))
TIMEOUT = 30
MARGIN = 20
"""Seconds beyond what is promised that a busy machine may take to wake, signal and end processes."""

PHOTOS = ["--recipe", "digits", *WEIGHTED, "--device", "cpu", "--epochs", "2", "--batch-size", "10"]
PHOTOS += ["--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3", "--augment", "resize", "--max-broken", "0.9"]
FLAGS = [*FEW, *SHARED, "--centering", "all", "--process-timeout", str(TIMEOUT)]
GLOBAL = [*FLAGS, "--allocation", "global", "--sync-batchnorm"]


def start(processes, out, flags=FLAGS, fault=None):
    """Train to the end, or to a fault (rank, signal or NAN, iteration): exit code, and seconds from it to the end."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    note = Path(f"{out}.time")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if fault is not None:
        environment["EXITWISE_FAULT"] = " ".join(map(str, (*fault, note)))
    command = [sys.executable, *launcher, PROGRAM, "train", *map(str, flags), "--out", str(out)]
    with Path(f"{out}.log").open("w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=120).returncode
    return code, time.time() - float(note.read_text()) if fault is not None else None


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "two"
    assert start(2, out)[0] == 0, Path(f"{out}.log").read_text()
    return out


@pytest.mark.parametrize(
    ("number", "within", "times"), [(signal.SIGKILL, 10, (6, 1)), (signal.SIGSTOP, TIMEOUT, (3, 1))]
)
def test_a_lost_process_ends_the_job(number, within, times, reference, tmp_path, count, report, dice):
    wanted, survived, slowest = count(*times), 0, 0.0
    for injection in range(wanted):
        out = tmp_path / str(injection)
        code, seconds = start(2, out, fault=(injection % 2, int(number), dice.randrange(1, 11)))
        slowest = max(slowest, seconds)
        survived += code != 0 and seconds <= within + MARGIN and start(2, out)[0] == 0 and same(out, reference)
    name = "killed" if number == signal.SIGKILL else f"stopped, timeout {TIMEOUT} s"
    bound = f"job ends within {within} s, {MARGIN} more if busy (slowest {slowest:.1f})"
    report(f"process {name}; {bound}; bit-identical ends", wanted, survived)


def test_a_process_is_killed_on_shards(tmp_path, count, report, dice):
    """Mixed and averaged besides."""
    data = shards_of_folder(make_folder(tmp_path / "photos", count=20), tmp_path / "shards", most=25)
    flags = [*PHOTOS, "--mixup", "0.2", "--ema", "0.9", "--checkpoint-every", "2", "--data", data]
    assert start(2, tmp_path / "whole", flags)[0] == 0, (tmp_path / "whole.log").read_text()
    wanted, survived = count(4, 1), 0
    for injection in range(wanted):
        out = tmp_path / str(injection)
        code, _ = start(2, out, flags, fault=(injection % 2, int(signal.SIGKILL), dice.randrange(1, 8)))
        survived += code != 0 and start(2, out, flags)[0] == 0 and same(out, tmp_path / "whole")
    report("process of two killed on shards, with mixup and EMA; bit-identical ends", wanted, survived)


def test_from_one_process_to_two_and_back(tmp_path, report):
    """Stopped by SIGTERM, the second time of one of two processes."""
    term = int(signal.SIGTERM)
    assert start(1, tmp_path / "one", GLOBAL)[0] == 0
    out = tmp_path / "changing"
    assert start(1, out, GLOBAL, (0, term, 3))[0] == 128 + term
    assert newest(out)["progress"]["iteration"] == 3
    assert start(2, out, GLOBAL, (1, term, 7))[0] != 0
    assert newest(out)["progress"]["iteration"] == 7
    assert start(1, out, GLOBAL)[0] == 0
    ours, theirs = (rows(path) for path in (out, tmp_path / "one"))
    worst = max(abs(ours[k][key] - theirs[k][key]) for k in range(len(theirs)) for key in ("loss", "meta_loss"))
    report(f"from 1 process to 2 to 1; losses within 1e-5 (furthest {worst:.1e})", 1, int(worst <= 1e-5))


def test_what_is_not_finite_in_one_process_is_skipped_by_all(tmp_path, count, report, dice):
    wanted, survived = count(4, 1), 0
    for injection in range(wanted):
        out = tmp_path / str(injection)
        code, _ = start(2, out, fault=(1 - injection % 2, "NAN", dice.randrange(1, 11)))
        skipped = sum(row["skipped_steps"] for row in rows(out))
        folders = [folder for folder in (out / "checkpoints").iterdir() if not folder.name.startswith(".")]
        clean = all(all_finite(load_checkpoint(folder)) for folder in folders)
        survived += code == 0 and skipped == 2 and clean
    report("batch not finite in one process of two; both skip, checkpoints are finite", wanted, survived)


def test_broken_images_met_by_any_process(tmp_path, report, dice, monkeypatch):
    """Cut behind their header, so that only decoding them tells; those of the test split are met when evaluating."""
    data, out = make_folder(tmp_path / "photos", count=20), tmp_path / "run"
    cuts = {f"cut {k}": (".png", cut(encoded("PNG", (24, 24), seed=k)), "damaged") for k in range(30)}
    broken = {str(write_files(data / dice.choice(["dark", "grey", "light"]), {name: cuts[name]})[0]) for name in cuts}
    assert start(2, out, [*PHOTOS, "--data", data])[0] == 0, Path(f"{out}.log").read_text()
    monkeypatch.setattr("exitwise.runs.build.build_model", tiny_network)
    splits = Run(out).splits()
    places = {str(splits.train.source.paths[i]) for part in splits[:2] for i in part.indices.tolist()}
    met = len(broken & places & listed(out)) == len(broken & places) == len(listed(out))
    ew.calibrate(out, budget=0.9)
    ew.evaluate(out)
    report("broken images met by two processes, listed", len(broken), len(broken & listed(out)) if met else 0)


def listed(out):
    with (out / "skipped_images.csv").open(newline="") as file:
        return {row["path"] for row in csv.DictReader(file)}


def test_two_processes_against_one(pair, report):
    """In double precision; 12, 12 and 7 images of each half."""
    worst = dict.fromkeys(("gradient", "loss", "meta_loss"), 0.0)
    good = 0
    for number, case in enumerate(CASES):
        ours, _ = steps(case, ALONE)
        close = []
        for result in pair[0]:
            for one, other in zip(ours, result["steps"][number][0], strict=True):
                for key in worst.keys() & {key for key, value in one.items() if value is not None}:
                    size = max(1.0, float(one[key].abs().max()))
                    apart = float((one[key] - other[key]).abs().max()) / size
                    worst[key] = max(worst[key], apart)
                    close.append(apart <= (1e-6 if key == "gradient" else 1e-5))
        good += all(close)
    figures = ", ".join(f"{key} {value:.0e}" for key, value in worst.items())
    report(f"1 process x 2B against 2 x B, methods and norms; furthest apart: {figures}", len(CASES), good)


def rows(out):
    with (out / "metrics.csv").open() as file:
        return [{key: float(value or 0) for key, value in row.items()} for row in csv.DictReader(file)]
