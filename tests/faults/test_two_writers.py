"""Two trainings into one folder: exactly one proceeds."""

import re
import shutil
import signal
from multiprocessing.connection import wait

from children import DIGITS, Child, same


def stopped(out, steps):
    """A run folder in which a training was killed after some steps."""
    child = Child(out, *DIGITS)
    child.follow(lambda moment: moment == ("step", steps))
    child.signal(signal.SIGKILL)
    child.process.join()
    return out


def first_to_step(children):
    """The child that comes to its first step, where it waits; the other one may have gone on or ended."""
    following = list(children)
    while True:
        ready = wait([child.pipe for child in following])
        for child in [each for each in following if each.pipe in ready]:
            if child.follow(lambda moment: True) is None:
                following.remove(child)
            elif child.steps:
                return child
            else:
                child.go()


def test_two_writers(tmp_path, count, report):
    reference = tmp_path / "reference"
    assert Child(reference, *DIGITS).end() == 0
    begun = stopped(tmp_path / "begun", 5)
    wanted, survived = count(10, 2), 0
    for number in range(wanted):
        out = tmp_path / str(number)
        if number % 2:
            shutil.copytree(begun, out)
        pair = [Child(out, *DIGITS, log=name) for name in ("-first", "-second")]
        winner = first_to_step(pair)
        (loser,) = (child for child in pair if child is not winner)
        refused = loser.end() == 2 and loser.steps == 0
        line = rf"exitwise: \S+ is being written by process {winner.process.pid} on \S+: wait for it, or .*\n"
        refused = refused and re.fullmatch(line, loser.errors) is not None
        winner.go()
        ended = winner.end()
        survived += refused and ended == 0 and same(out, reference)
        if not (refused and ended == 0 and same(out, reference)):
            print(number, loser.steps, repr(loser.errors), ended, repr(winner.errors), same(out, reference))
    report("two runs into one folder; exactly one proceeds", wanted, survived)
