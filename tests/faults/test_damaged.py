"""Checkpoints cut short or with one bit flipped are noticed before use, and the one before them is taken."""

import re
import shutil

import pytest
from children import DIGITS, Child, same

from exitwise.training.checkpoint import CheckpointError, load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    child = Child(out, *DIGITS)
    assert child.end() == 0, child.errors
    return out


def truncate(path, dice):
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])


def flip(path, dice):
    content = bytearray(path.read_bytes())
    bit = dice.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_noticed(damage, trained, tmp_path, count, report, dice):
    whole = max(trained.glob("checkpoints/last-*"))
    wanted, noticed = count(100, 20), 0
    for number in range(wanted):
        copy = shutil.copytree(whole, tmp_path / str(number))
        damage(dice.choice(sorted(copy.iterdir())), dice)
        try:
            load_checkpoint(copy)
        except CheckpointError as error:
            noticed += "\n" not in str(error)
    report(f"checkpoint damaged ({damage.__name__}); noticed before use", wanted, noticed)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_the_one_before_is_taken(damage, trained, tmp_path, count, report, dice):
    wanted, survived = count(5, 1), 0
    for number in range(wanted):
        out = shutil.copytree(trained, tmp_path / str(number))
        damage(dice.choice(sorted(max(out.glob("checkpoints/last-*")).iterdir())), dice)
        child = Child(out, *DIGITS)
        ended = child.end() == 0
        warned = re.fullmatch(r"exitwise: warning: [^\n]*; continuing from last-0+\d+ before it\n", child.errors)
        survived += bool(ended and warned and same(out, trained))
    report(f"newest checkpoint damaged ({damage.__name__}); resumed from the one before", wanted, survived)
