"""Weights from where samples would leave, or could, beside loops."""

import math

import pytest
import torch

import exitwise as ew
from exitwise.methods.weights.by_exit import ByExit
from exitwise.methods.weights.capability_gated import CapabilityGated, exit_importance
from exitwise.methods.weights.exit_simulated import ExitSimulated
from exitwise.weighting.leaving import gated_weights, simulated_weights
from exitwise.weighting.passes import train_pass

EXITS = 4


def test_simulated_weights_fall_off_from_the_exit_of_each_threshold():
    confidences, thresholds = torch.rand(7, EXITS), torch.rand(3)
    found = simulated_weights(confidences, thresholds, 1.7)
    for b in range(7):
        expected = [0.0] * EXITS
        for t in thresholds:
            leaves = next((k for k in range(EXITS - 1) if confidences[b, k] >= t), EXITS - 1)
            falls = [math.exp(-1.7 * abs(k - leaves)) for k in range(EXITS)]
            expected = [old + EXITS * fall / sum(falls) / 3 for old, fall in zip(expected, falls, strict=True)]
        torch.testing.assert_close(found[b], torch.tensor(expected))
    torch.testing.assert_close(simulated_weights(confidences, thresholds, 0.0), torch.ones(7, EXITS))


@pytest.mark.parametrize("threshold", [0.5, None])
def test_gated_weights_are_for_those_that_no_earlier_exit_could_answer(threshold):
    logits, targets = 2 * torch.randn(9, EXITS, 3), torch.randint(3, (9,))
    importance = torch.tensor([1.0, 0.7, 0.4, 0.1])
    found = gated_weights(logits, targets, importance, 1e-3, threshold)
    for b in range(9):
        eligible, raw = 1.0, []
        for k in range(EXITS):
            raw.append(float(importance[k]) * eligible + 1e-3)
            p = logits[b, k].softmax(0)
            right = p.argmax() == targets[b] and p.max() >= 0.5
            eligible *= 1 - (float(right) if threshold else float(p[targets[b]]))
        torch.testing.assert_close(found[b], torch.tensor([EXITS * each / sum(raw) for each in raw]))


def test_importance_moves_from_early_to_late_exits():
    assert exit_importance(4, 0.0).tolist() == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert exit_importance(4, 1.0).tolist() == pytest.approx([0.2, 0.5, 0.8, 1.0])
    assert exit_importance(3, 0.5).tolist() == pytest.approx([0.6, 0.575, 0.55])
    assert exit_importance(1, 0.0).tolist() == [1.0]


@pytest.fixture(scope="module")
def passed():
    torch.manual_seed(0)
    model = ew.create_model("msdnet_small").train()
    return model, train_pass(model, torch.randn(6, 1, 8, 8), torch.randint(10, (6,)))


def weights(method, passed, progress=1.0):
    model, forward = passed
    method.progress = progress
    return method.weigh(model, None, forward, None, 0).weights


def test_weights_by_exit(passed):
    assert weights(ByExit(), passed)[3].tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert weights(ByExit("decreasing"), passed)[0].tolist() == pytest.approx([1.6, 1.2, 0.8, 0.4])
    macs = torch.tensor(passed[0].exit_macs)
    torch.testing.assert_close(weights(ByExit("macs"), passed)[0], macs / macs.float().mean())


def test_thresholds_are_drawn_from_the_last_epoch_s_range(passed, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "exitwise.methods.weights.exit_simulated.simulated_weights",
        lambda confidences, thresholds, sharpness: drawn.append((thresholds, sharpness)) or confidences,
    )
    method = ExitSimulated(sharpness=8.0, threshold_draws=100)
    for index, progress in ((0, 0.0), (1, 0.25), (0, 0.5), (1, 0.75)):
        method.begin(index, progress)
        weights(method, passed, progress)
    assert [sharpness for _, sharpness in drawn] == [0, 2, 4, 6]
    confidences = passed[1].confidences
    assert drawn[1][0].min() < confidences.min()
    for thresholds, _ in drawn[2:]:
        assert confidences.min() <= thresholds.min() < thresholds.max() <= confidences.max()
        assert thresholds.max() - thresholds.min() > 0.9 * (confidences.max() - confidences.min())


def test_what_is_no_number_is_in_no_range(passed):
    model, forward = passed
    method = ExitSimulated()
    spoiled = forward.confidences.clone()
    spoiled[0, 0] = torch.nan
    method.weigh(model, None, type(forward)(**{**vars(forward), "confidences": spoiled}), None, 0)
    assert method.range_so_far.isfinite().all()


def test_gates_follow_the_training(passed):
    early, late = (weights(CapabilityGated("soft"), passed, progress).mean(0) for progress in (0.0, 1.0))
    assert early[0] > late[0]
    assert early[3] < late[3]
    hard = weights(CapabilityGated(gate_confidence=1.0), passed, 0.0)
    torch.testing.assert_close(hard, hard[:1].expand_as(hard))  # nobody is that sure
