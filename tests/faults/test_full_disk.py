"""A disk that is full while a checkpoint is written: a file-size limit, set from outside at the moment of saving."""

import re
import resource

import pytest
from children import DIGITS, Child, debris, newest, same


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    child = Child(out, *DIGITS)
    assert child.end() == 0, child.errors
    return out


def test_full_disk(reference, tmp_path, count, report, dice):
    size = min(path.stat().st_size for path in reference.glob("checkpoints/last-*/*"))
    wanted, survived = count(10, 2), 0
    for number in range(wanted):
        out = tmp_path / str(number)
        child = Child(out, *DIGITS)
        saves = dice.randrange(1, 4)
        child.follow(lambda moment, saves=saves: moment.kind == "step" and moment.number == 2 * saves + 1)
        before = newest(out)["progress"]["iteration"]
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (dice.randrange(size), resource.RLIM_INFINITY))
        child.go()
        clear = r"exitwise: could not save \S*-\d+: .*[Ff]ile too large.* \(the checkpoints before it are kept\)\n"
        good = child.end() == 1 and re.fullmatch(clear, child.errors)
        intact = newest(out)["progress"]["iteration"] >= before and not debris(out)
        last = Child(out, *DIGITS)
        survived += bool(good and intact and last.end() == 0 and same(out, reference))
    report("disk full while saving; the old checkpoint intact, no debris", wanted, survived)
