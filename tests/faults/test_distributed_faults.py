"""Several processes: one of them is killed or stopped; a run goes on with another number of processes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import DIGITS, newest, same

PROGRAM = str(Path(__file__).with_name("rank.py"))
TIMEOUT = 6
FLAGS = [*DIGITS, "--method", "meta-weighted-shared", "--centering", "all", "--process-timeout", str(TIMEOUT)]
GLOBAL = [*FLAGS, "--allocation", "global", "--sync-batchnorm"]


def start(processes, out, flags=FLAGS, fault=None):
    """Train to the end, or to a fault (rank, signal, iteration): exit code, and seconds from the fault to the end."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    note = Path(f"{out}.time")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if fault is not None:
        environment["EXITWISE_FAULT"] = " ".join(map(str, (*fault, note)))
    command = [sys.executable, *launcher, PROGRAM, "train", *flags, "--out", str(out)]
    with Path(f"{out}.log").open("w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=120).returncode
    return code, time.time() - float(note.read_text()) if fault is not None else None


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "two"
    assert start(2, out)[0] == 0, Path(f"{out}.log").read_text()
    return out


@pytest.mark.parametrize(
    ("number", "within", "times"), [(signal.SIGKILL, 10, (6, 1)), (signal.SIGSTOP, TIMEOUT + 10, (3, 1))]
)
def test_a_lost_process_ends_the_job(number, within, times, reference, tmp_path, count, report, dice):
    wanted, survived, slowest = count(*times), 0, 0.0
    for injection in range(wanted):
        out = tmp_path / str(injection)
        code, seconds = start(2, out, fault=(injection % 2, int(number), dice.randrange(1, 11)))
        slowest = max(slowest, seconds)
        survived += code != 0 and seconds <= within and start(2, out)[0] == 0 and same(out, reference)
    name = "killed" if number == signal.SIGKILL else f"stopped, timeout {TIMEOUT} s"
    report(f"process {name}; job ends within {within} s (slowest {slowest:.1f}); bit-identical ends", wanted, survived)


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


def rows(out):
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader((out / "metrics.csv").open())]
