"""Calibrations from recorded outputs, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest

from exitwise.deploy.anew import calibrated_anew, standard_of
from exitwise.deploy.asked import Asked
from exitwise.deploy.calibrating import Costs, Recorded, calibrated
from exitwise.deploy.calibration import CALIBRATION
from exitwise.errors import DataError, UserError
from exitwise.exiting.outputs import Outputs
from exitwise.exiting.risk import design_and_test

COSTS = Costs((20, 60, 100), 100)


def recorded(of_each):
    """So many samples of each of three classes; deeper exits are right more often."""
    generator = np.random.default_rng(0)
    targets = np.repeat(np.arange(3), of_each)
    logits = generator.normal(size=(len(targets), 3, 3))
    logits[np.arange(len(targets)), :, targets] += [0.5, 1.5, 3.0]
    return Recorded(logits, targets, ["a", "b", "c"])


@pytest.fixture(scope="module")
def held():
    return recorded(100)


@pytest.mark.parametrize("thresholds", [None, "same", "searched"])
@pytest.mark.parametrize("wish", [{"budget": 0.6}, {"max_accuracy_drop": 0.05}])
def test_the_same_outputs_give_the_same_calibration_again(held, wish, thresholds):
    found = calibrated(Asked(wish, thresholds=thresholds, temperature=True), held, COSTS, network="these")
    again = calibrated_anew(found, held, standard_of(found, held.logits), "the same")
    assert again.policy == found.policy
    assert again.table == found.table
    assert again.outcome.paired == found.outcome.paired
    assert again.network == "the same, from these"
    assert found.expected["macs"] < 100


def test_what_cannot_be_calibrated_is_named(held):
    broken = held.logits.copy()
    broken[:7, 1, 0] = np.nan
    with pytest.raises(DataError, match="those of exit 2 are not finite for 7 of 300 images"):
        held._replace(logits=broken).check()
    with pytest.raises(DataError, match="there is none of 'd'"):
        held._replace(classes=["a", "b", "c", "d"]).check()
    with pytest.raises(UserError, match="a budget must lie between"):
        calibrated(Asked({"budget": 0.1}), held, COSTS)
    with pytest.raises(UserError, match=r"expected at least \d{4} held-out images for a guarantee of 0\.5 points"):
        calibrated(Asked({"max_accuracy_drop": 0.005}, guarantee=0.99), held, COSTS)


def test_a_drop_counts_from_the_best_exit_or_the_full_network_as_asked(held):
    logits = held.logits[:, [0, 2, 1]]
    best, full = (
        calibrated(Asked({"max_accuracy_drop": 0.01}, drop_from=which), held._replace(logits=logits), COSTS)
        for which in ("best", "full")
    )
    assert best.intro == "cheapest within 1 point of exit 2 alone"
    assert full.intro == "cheapest within 1 point of the full network"
    assert full.expected["macs"] < best.expected["macs"]
    assert str(best).startswith("Exit 2 alone is more accurate than the full network, by +")


def test_a_guarantee_may_be_of_each_class_or_group():
    held = recorded(700)._replace(groups=["north", "south"] * 1050)
    wish = {"max_accuracy_drop": 0.1}
    found = {
        each: calibrated(Asked(wish, guarantee=0.9, guarantee_each=each), held, COSTS)
        for each in (None, "class", "group")
    }
    for each, calibration in found.items():
        assert (calibration.guarantee["each"], calibration.guarantee["holds"]) == (each, True)
        assert calibration.expected["macs"] >= found[None].expected["macs"], "what holds for each holds for all"
    said = {each: calibration.lines()[-1] for each, calibration in found.items()}
    assert "accuracy on average at most 10 points below" in said[None]
    assert said[None].endswith("; a class or group may lose more")
    assert "accuracy of each class at most 10 points below" in said["class"]
    assert "accuracy of each group at most 10 points below" in said["group"]
    asked = Asked(wish, guarantee=0.9, guarantee_each="group")
    few = held._replace(groups=["rare"] * 3 + ["common"] * 2097)
    with pytest.raises(UserError, match=r"expected at least \d+ held-out images of each group for a guarantee"):
        calibrated(asked, few, COSTS)
    with pytest.raises(UserError, match="a guarantee for each group needs groups; got none"):
        calibrated(asked, held._replace(groups=None), COSTS)


def test_what_is_not_sure_is_not_answered(held):
    found = calibrated(Asked({"budget": 0.6}, abstain_below=0.6), held, COSTS)
    plain = calibrated(Asked({"budget": 0.6}), held, COSTS)
    assert found.policy == plain.policy.abstaining(0.6)
    assert found.expected == plain.expected, "who leaves where is the same"
    left = Outputs.from_logits(held.logits, held.targets).under(found.policy)
    right = left.predictions == held.targets
    sure = left.confidences >= 0.6
    assert found.outcome.answers == (sure.sum(), (sure & right).sum(), 300)
    assert sum(part.answers.answered for part in found.outcome.classes) == sure.sum()
    said = [line for line in found.lines() if "answered" in line]
    assert said[0].startswith(f"{sure.mean():.1%} of 300 held-out".replace("%", " %"))
    assert said[1] == "not answered: confidences below 0.6000"
    content = json.loads(json.dumps(CALIBRATION.to_json(found)))
    read = CALIBRATION.parse(content, Path("calibration.json"))
    assert (read.policy, read.outcome) == (found.policy, found.outcome)
    again = calibrated_anew(found, held, standard_of(found, held.logits), "the same")
    assert again.policy == found.policy, "eight bits abstain alike"


def test_the_accuracy_of_answers_is_guaranteed_with_thresholds_that_did_not_see_what_tests_it():
    held = recorded(700)
    asked = Asked({"budget": 0.6}, guarantee=0.9, answered_accuracy=0.9)
    found = calibrated(asked, held, COSTS)
    _, test = design_and_test(2100, held.seed)
    other = held.targets.copy()
    other[test] = (other[test] + 1) % 3
    spoiled = calibrated(asked, held._replace(targets=other), COSTS)
    assert spoiled.policy.thresholds == found.policy.thresholds
    assert (spoiled.is_kept_promise, spoiled.policy.abstain_below) == (False, 1.0)
    left = Outputs.from_logits(held.logits, held.targets).under(found.policy)
    sure = left.confidences[test] >= found.policy.abstain_below
    right = (left.predictions == held.targets)[test][sure]
    assert (found.guarantee["answered"], found.guarantee["right"]) == (sure.sum(), right.sum())
    assert right.mean() > 0.9
    said = "guaranteed with probability 0.9: of what is answered at least 90.0 % is right on average (tested on 1470"
    assert found.lines()[-1].startswith(said)
    with pytest.raises(UserError, match=r"expected at least \d+ held-out images for a guarantee that 99.9 % of what"):
        calibrated(Asked({"budget": 0.6}, guarantee=0.9, answered_accuracy=0.999), recorded(100), COSTS)
