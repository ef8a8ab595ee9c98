"""kill -9 at random moments, every third while saving; SIGTERM in training, evaluation and saving."""

import signal
import time

import pytest
from children import DIGITS, FEW, SHARED, TINY, Child, newest, same

from images import make_folder
from shards import shards_of_folder

PHOTOS = ["--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3", "--augment", "resize", "--workers", "1", "--lr", "0.05"]


MIXED = ["--mixup", "0.2", "--cutmix", "1", "--ema", "0.9"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five kinds of training, and of each the folder of one that nobody disturbed, with the time it took."""
    root = tmp_path_factory.mktemp("runs")
    data = make_folder(root / "photos", size=(12, 10), count=20)
    shards = shards_of_folder(data, root / "shards", most=25)
    kinds = {
        "exact": DIGITS,
        "shared, augmented": [*FEW, *SHARED, "--augment", "shift"],
        "shared, workers": [*TINY, *SHARED, *PHOTOS, "--data", str(data)],
        "exact, mixed, averaged": [*DIGITS, *MIXED],
        "shards, shared, mixed, averaged, workers": [*TINY, *SHARED, *PHOTOS, *MIXED, "--data", str(shards)],
    }
    references = {}
    for name, flags in kinds.items():
        start = time.monotonic()
        child = Child(root / name, *flags)
        assert child.end() == 0, child.errors
        references[name] = (flags, root / name, time.monotonic() - start)
    return references


def kill(child, seconds, dice, saving):
    """Whether it was killed before it ended."""
    if saving:
        position = iter(range(dice.randrange(1, 60), -1, -1))
        if child.follow(lambda moment: moment.kind == "save" and next(position) == 0) is None:
            child.end()
            return False
        if dice.random() < 0.5:
            child.go()
            time.sleep(dice.uniform(0, 0.01))  # within a write, say
    else:
        end = time.monotonic() + dice.uniform(0, seconds)
        while (left := end - time.monotonic()) > 0 and child.process.is_alive():
            child.follow(lambda moment: time.monotonic() > end, left)
    child.process.kill()
    child.process.join()
    return child.process.exitcode == -signal.SIGKILL


def test_kill_9(runs, tmp_path, count, report, dice):
    wanted, injected, survived = count(50, 6), 0, 0
    while injected < wanted:
        name = list(runs)[dice.randrange(len(runs))]
        flags, reference, seconds = runs[name]
        out = tmp_path / f"{injected} {name}"
        kills = 0
        for _ in range(min(dice.randrange(2, 6), wanted - injected)):
            kills += kill(Child(out, *flags), seconds, dice, saving=(injected + kills) % 3 == 2)
        last = Child(out, *flags)
        injected += kills
        survived += kills * (last.end() == 0 and same(out, reference))
    report("kill -9, a third while saving; mixup, EMA and shards among it; bit-identical ends", injected, survived)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(number, runs, tmp_path, count, report, dice):
    wanted, injected, survived = count(20, 3) if number == signal.SIGTERM else count(5, 1), 0, 0
    while injected < wanted:
        flags, reference, _ = runs[list(runs)[dice.randrange(len(runs))]]
        out = tmp_path / str(injected)
        good = steps = 0
        kinds = ("step", "evaluate", "save")
        for kind in [kinds[(injected + index) % 3] for index in range(min(3, wanted - injected))]:
            position = iter(range(dice.randrange(4 if kind != "evaluate" else 1), -1, -1))
            child = Child(out, *flags)
            assert child.follow(lambda moment, kind=kind, left=position: moment.kind == kind and next(left) == 0)
            child.signal(number)
            child.go()
            ended = child.end() == 128 + number and "the same `train` command continues" in child.errors
            steps = max(steps, child.steps)
            good += ended and newest(out)["progress"]["iteration"] == steps
            injected += 1
        last = Child(out, *flags)
        survived += good * (last.end() == 0 and same(out, reference))
    report(f"{number.name} in training, evaluation, saving; no step lost", injected, survived)
