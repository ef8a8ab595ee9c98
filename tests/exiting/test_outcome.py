"""What a policy loses, against what, for whom; and in which words."""

import json

import numpy as np
import pytest

from exitwise.exiting.outcome import Outcome, Yardstick, best_yardstick
from exitwise.exiting.outputs import Left
from exitwise.exiting.paired import Paired
from exitwise.exiting.parts import Part
from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.wish import missed, worded

CLASSES = ["rose", "tulip", "weed"]


def at(answers, exit):
    """All samples, left at one exit."""
    return Left(answers[:, exit], np.full(len(answers), exit), np.ones(len(answers)))


@pytest.fixture(scope="module")
def answers():
    """Targets of 300 samples and the answers of three exits, the middle one of which is right most often."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 300)
    own = np.stack([np.where(generator.random(300) < share, targets, 0) for share in (0.5, 0.9, 0.6)], axis=1)
    return targets, own


def test_the_best_single_exit_is_what_losses_count_from(answers):
    targets, own = answers
    assert best_yardstick(own, own, targets) == Yardstick(1)
    assert best_yardstick(own[:, ::-1], own[:, ::-1], targets) == Yardstick(1)
    mixed = np.repeat(targets[:, None], 3, axis=1)
    assert best_yardstick(own, mixed, targets) == Yardstick(2, own=False)
    same = own[:, [1, 1, 1]]
    assert best_yardstick(same, same, targets) == Yardstick(2), "where none is better, the full network"
    assert [each.name(3) for each in (Yardstick(2), Yardstick(1), Yardstick(2, own=False))] == [
        "the full network",
        "exit 2 alone",
        "all at exit 3 by this measure",
    ]


def test_an_exit_that_seems_better_by_chance_is_not_what_a_guarantee_counts_from():
    """A tenth of the held-out samples says so of every third exit that is three points worse."""
    generator, picked = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(300):
        targets = generator.integers(0, 6, 240)
        own = np.stack([np.where(generator.random(240) < share, targets, 6) for share in (0.5, 0.53)], axis=1)
        picked += [best_yardstick(own, own, targets, surely=sure).exit == 0 for sure in (False, True)]
    assert picked[0] > 60
    assert picked[1] == 0
    targets = generator.integers(0, 6, 240)
    clear = np.stack([np.where(generator.random(240) < share, targets, 6) for share in (0.7, 0.4)], axis=1)
    assert best_yardstick(clear, clear, targets, surely=True) == Yardstick(0)


def test_an_earlier_exit_that_is_better_is_said_first(answers):
    targets, own = answers
    outcome = Outcome.of(at(own, 0), targets, own, own[:, 1], Yardstick(1), CLASSES)
    number, paired = outcome.better
    assert number == 2
    assert paired == Paired.of(own[:, 1] == targets, own[:, 2] == targets)
    lines = outcome.lines("within 50 % of MACs", OperatingPoint(0.5, 10, (1, 0, 0)), 20, "held-out images")
    assert lines[0].startswith("Exit 2 alone is more accurate than the full network, by +")
    assert "Within 50 % of MACs: 50 % of MACs; -" in lines[1]
    assert "points [" in lines[1]
    assert " against exit 2 alone on 300 held-out images; leaves at exits 1 to 3: 100, 0, 0 %." in lines[1]
    assert Outcome.of(at(own, 0), targets, own[:, ::-1], own[:, 1], Yardstick(1), CLASSES).better is not None
    assert Outcome.of(at(own, 0), targets, own[:, :2], own[:, 1], Yardstick(1), CLASSES).better is None


def test_an_exit_that_is_cheaper_and_better_is_said(answers):
    """Half leave where it is bad, the others at the end: all at the middle cost less and are right more often."""
    targets, own = answers
    exits = np.arange(300) % 2 * 2
    left = Left(own[np.arange(300), exits], exits, np.ones(300))
    asked = (left, targets, own, own[:, 2], Yardstick(2), CLASSES)
    outcome = Outcome.of(*asked, exit_costs=(1, 5, 10))
    number, paired = outcome.cheaper
    assert (number, paired) == (2, Paired.of(own[:, 1] == targets, left.predictions == targets))
    lines = outcome.lines("within 60 % of MACs", OperatingPoint(0.5, 5.5, (0.5, 0, 0.5)), 10, "test images")
    said = f"Exit 2 alone costs no more and is more accurate than this policy, by {paired}: "
    assert any(line.startswith(said) for line in lines)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    assert Outcome.of(*asked, exit_costs=(1, 6, 10)).cheaper is None, "it costs more than the policy"
    assert Outcome.of(*asked).cheaper is None, "costs are not known"


def test_the_class_that_loses_most_and_the_one_never_named_are_said():
    targets = np.array([0] * 90 + [1] * 8 + [2] * 2)
    full = targets.copy()
    full[-1] = 0
    early = np.where(targets == 1, 0, full)
    early[-2:] = 0
    own = np.stack([early, full], axis=1)
    outcome = Outcome.of(at(own, 0), targets, own, full, Yardstick(1), CLASSES)
    assert outcome.paired == (0, 9, 100)
    assert outcome.worst == Part("tulip", Paired(0, 8, 8), 0, (8, 0))
    assert outcome.unnamed == ("tulip", "weed")
    lines = outcome.lines("at p = 1", OperatingPoint(0.9, 10, (1, 0)), 20, "test images")
    assert lines[0] == "No better than to answer always with the commonest class, which 90.0 % are of."
    assert lines[1].endswith("Worst class: tulip, -100.0 points [-100.0, -42.8].")
    assert lines[2:] == [
        "1 of 3 classes lose more than 1 point here, and lose beyond chance: tulip, -100.0 points [-100.0, -42.8].",
        "None of the test images is given the class tulip, weed, though some are of it.",
    ]
    nothing_lost = Outcome.of(at(own, 1), targets, own, full, Yardstick(1), CLASSES)
    assert nothing_lost.worst is None
    assert nothing_lost.unnamed == ()


def test_a_network_that_has_learned_nothing_is_called_so():
    """Of 300 classes 0.7 % right is twice the commonest class's share, and chance."""
    outcome = Outcome(Yardstick(1), Paired(2, 2, 600), (), 1 / 300, None)
    lines = outcome.lines("at p = 1", OperatingPoint(4 / 600, 10, (0.5, 0.5)), 20, "test images")
    assert lines[:-1] == [
        "No better, beyond chance, than to answer always with the commonest class, which 0.3 % are of."
    ]
    assert outcome.lines("at p = 1", OperatingPoint(30 / 600, 10, (0.5, 0.5)), 20, "test images")[1:] == []


def test_a_difference_within_noise_is_called_so():
    outcome = Outcome(Yardstick(1), Paired(3, 4, 500), (), 0.2, None)
    (line,) = outcome.lines("at p = 1", OperatingPoint(0.9, 10, (0.5, 0.5)), 20, "test images")
    assert ": 50 % of MACs; -0.2 points [-1.4, +1.0] against the full network on 500 test images, which may be" in line


def test_it_is_written_and_read(answers):
    targets, own = answers
    outcome = Outcome.of(at(own, 0), targets, own, own[:, 1], Yardstick(1, own=False), CLASSES)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    nothing = outcome._replace(classes=(), better=None)
    assert Outcome.from_json(json.loads(json.dumps(nothing.to_json()))) == nothing


def test_records_that_name_the_worst_class_alone_are_read(answers):
    targets, own = answers
    content = Outcome.of(at(own, 0), targets, own, own[:, 1], Yardstick(1), CLASSES).to_json()
    del content["classes"], content["groups"], content["tolerance"]
    content["worst"] = {"name": "tulip", "gained": 1, "lost": 3, "samples": 9}
    assert Outcome.from_json(content).worst == Part("tulip", Paired(1, 3, 9), 0)


def test_a_group_that_pays_for_the_others_is_said():
    """On average nothing is lost, for one site has what another pays."""
    targets = np.tile([0, 1], 200)
    groups = ["north"] * 200 + ["south"] * 200
    full = np.concatenate([np.where(np.arange(200) < 20, 2, targets[:200]), targets[200:]])
    early = np.concatenate([targets[:200], np.where(np.arange(200) < 20, 2, targets[200:])])
    own = np.stack([early, full], axis=1)
    outcome = Outcome.of(at(own, 0), targets, own, full, Yardstick(1), CLASSES, groups, tolerance=0.02)
    assert outcome.paired.difference == 0
    north, south = outcome.groups
    assert south == Part("south", Paired(0, 20, 200), 180, (200, 0))
    assert north.paired == Paired(20, 0, 200)
    lines = outcome.lines("at p = 1", OperatingPoint(0.95, 10, (1, 0)), 20, "test images")
    assert lines[0].endswith(f" Worst group: south, {south.paired}.")
    assert lines[1] == f"1 of 2 groups lose more than 2 points here, and lose beyond chance: south, {south.paired}."
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"max_accuracy_drop": 0.01}, "cheapest within 1 point of the full network"),
        ({"max_accuracy_drop": 0.005}, "cheapest within 0.5 points of the full network"),
        ({"budget": 0.5}, "within 50.0 % of MACs"),
        ({"macs": 2e7}, "within 20M MACs"),
        ({"latency": 0.005}, "within 5 ms"),
        ({"p": 0.75}, "at p = 0.75"),
        ({"proportions": [0.5, 0.5]}, "at the proportions asked for"),
    ],
)
def test_wishes_in_words(wish, words):
    assert worded(wish, "the full network") == words


def test_a_wish_that_is_missed_is_said_with_what_may_help():
    point = OperatingPoint(0.9, 17, (0.94, 0, 0, 0.06))
    message = missed({"budget": 0.3}, (), point, 400, 100)
    assert message.startswith("30.0 % of MACs were asked for and 17.0 % are spent: too many samples have the same")
    assert missed({"macs": 30}, (), point, 400, 100) == message
    assert missed({"budget": 0.2}, (), point, 400, 100) is None
    assert "found on a part" in missed({"budget": 0.3}, (), point, 400, 100, on_a_part=True)
    assert "temperatures" not in missed({"budget": 0.3}, (), point, 400, 100, has_temperatures=True)
    seconds = [0.001 * (k + 1) for k in range(len(point.shares))]
    spent = sum(share * each for share, each in zip(point.shares, seconds, strict=True))
    assert missed({"latency": spent}, (), point, 400, 100, seconds) is None
    late = missed({"latency": spent + 0.1 * seconds[-1]}, (), point, 400, 100, seconds)
    assert f"{1000 * spent:.3g} ms are spent: too many samples have the same confidence" in late
    assert missed({"budget": 0.3}, (), point, 10, 100) is None, "two of ten samples make that much"
    shares = missed({"proportions": [0.25] * 4}, [0.25] * 4, point, 400, 100)
    assert shares.startswith("25.0 % were to leave at exit 1, and 94.0 % do: ")
    assert missed({"max_accuracy_drop": 0.3}, (), point, 400, 100) is None


def test_a_budget_that_is_exceeded_is_said():
    point = OperatingPoint(0.9, 55.0, (0.5, 0.5))
    said = missed({"budget": 0.5}, (), point, 1000, 100.0)
    assert said is not None
    assert said.startswith("50.0 % of MACs were asked for and 55.0 % are spent: thresholds were found on a part of")
    assert missed({"budget": 0.5}, (), point._replace(macs=50.5), 1000, 100.0) is None
