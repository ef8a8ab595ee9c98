import statistics

import numpy as np
import pytest
import torch

import reference
from exitwise.budgets import exit_proportions
from exitwise.errors import UserError
from exitwise.exiting.calibration import calibrate_accuracy, calibrate_macs, calibrate_proportions
from exitwise.exiting.policy import ExitPolicy

MACS = (10.0, 25.0, 60.0, 100.0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 3, 50, 301])
@pytest.mark.parametrize("p", [0.05, 0.8, 1.0, 1.9])
def test_thresholds_and_exits_equal_the_loops(n, p, ties):
    confidences = torch.rand(n, 4).round(decimals=1) if ties else torch.rand(n, 4)
    policy = calibrate_proportions(confidences, exit_proportions(p, 4))
    assert list(policy.thresholds) == reference.calibrate(confidences, reference.proportions(p, 4))
    new = torch.rand(200, 4).round(decimals=1)
    assert policy.exit_of(new).tolist() == reference.leave(new, policy.thresholds)


def test_without_ties_the_proportions_are_met_exactly():
    confidences = torch.rand(1000, 3)
    shares = torch.bincount(calibrate_proportions(confidences, [0.25, 0.35, 0.4]).exit_of(confidences)) / 1000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.35, 0.4]))


def test_equal_confidences_leave_together():
    confidences = torch.full((10, 2), 0.5)
    assert calibrate_proportions(confidences, [0.1, 0.9]).exit_of(confidences).tolist() == [0] * 10


@pytest.mark.parametrize("fraction", [0.1, 0.1001, 0.2, 0.5, 0.73, 0.999, 1.0])
def test_a_macs_budget_is_used_but_not_exceeded(fraction):
    confidences = torch.rand(2000, 4)
    policy, _ = calibrate_macs(confidences, MACS, fraction * 100)
    spent = torch.tensor(MACS, dtype=torch.float64)[policy.exit_of(confidences)].mean()
    assert fraction * 100 - 0.5 <= spent <= fraction * 100 + 1e-9


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.73, 1.0])
def test_one_threshold_for_all_exits_is_the_dearest_that_a_budget_allows(fraction, ties):
    confidences = torch.rand(150, 4).round(decimals=1) if ties else torch.rand(150, 4)
    costs = torch.tensor(MACS, dtype=torch.float64)

    def spent(threshold):
        return sum(MACS[exit] for exit in reference.leave(confidences, [threshold] * 3)) / 150

    allowed = [t for t in [*confidences[:, :3].flatten().tolist(), 2.0] if spent(t) <= fraction * 100 + 1e-9]
    policy, shares = calibrate_macs(confidences, MACS, fraction * 100, "same")
    found = costs[policy.exit_of(confidences)]
    assert found.mean() == pytest.approx(max(map(spent, allowed)))
    assert sum(share * cost for share, cost in zip(shares, MACS, strict=True)) == pytest.approx(float(found.mean()))
    assert len(set(policy.thresholds)) == 1


def test_one_threshold_for_all_exits_keeps_an_accuracy_at_the_least_cost():
    confidences = torch.rand(300, 4)
    correct = torch.rand(300, 4) < confidences
    policy, _ = calibrate_accuracy(confidences, correct, MACS, 0.02, "same")

    def at(threshold):
        exits = reference.leave(confidences, [threshold] * 3)
        accuracy = sum(bool(correct[i, exit]) for i, exit in enumerate(exits)) / 300
        return accuracy, sum(MACS[exit] for exit in exits) / 300

    least = correct[:, -1].double().mean().item() - 0.02
    tried = [at(t) for t in np.quantile(confidences[:, :3].numpy(), np.linspace(0, 1, 400)).tolist()]
    accuracy, cost = at(policy.thresholds[0])
    assert accuracy >= least - 1e-9
    assert cost <= min(cost for accuracy, cost in tried if accuracy >= least) + 0.5


def test_an_accuracy_counts_from_the_network_and_out_of_reach_is_refused():
    confidences, correct = torch.rand(100, 2), torch.zeros(100, 2, dtype=torch.bool)
    correct[:80] = True
    policy, _ = calibrate_accuracy(confidences, correct, (1.0, 2.0), 0.05, full=torch.arange(100) < 84)
    assert policy.exit_of(confidences).float().mean() <= 0.01
    with pytest.raises(UserError, match=r"lose at most 5 points of the full .* by this measure 10 is the least"):
        calibrate_accuracy(confidences, correct, (1.0, 2.0), 0.05, full=torch.arange(100) < 90)


def test_a_margin_counts_in_standard_errors_of_the_paired_loss():
    confidences, correct = torch.rand(400, 4), torch.rand(400, 4) < torch.tensor([0.6, 0.7, 0.8, 0.9])
    policy, _ = calibrate_accuracy(confidences, correct, MACS, 0.05, margin=2.0)
    cheaper, _ = calibrate_accuracy(confidences, correct, MACS, 0.05)

    def lost(policy):
        exits = reference.leave(confidences, policy.thresholds)
        losses = [int(correct[i, 3]) - int(correct[i, exit]) for i, exit in enumerate(exits)]
        return sum(losses) / 400, statistics.pstdev(losses) / 20, sum(MACS[exit] for exit in exits) / 400

    mean, error, cost = lost(policy)
    assert mean + 2 * error <= 0.05
    assert lost(cheaper)[2] < cost < MACS[-1]


@pytest.mark.parametrize("macs", [9.0, 101.0])
def test_a_macs_budget_out_of_reach_is_refused(macs):
    with pytest.raises(ValueError, match=r"between the first exit's cost .* 10 to 100 MACs"):
        calibrate_macs(torch.rand(10, 4), MACS, macs)


def test_no_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        calibrate_proportions(torch.rand(0, 3), [0.2, 0.3, 0.5])


def test_a_policy_refuses_sentinels_and_other_networks():
    with pytest.raises(ValueError, match="None where nobody can leave"):
        ExitPolicy([0.5, float("inf")])
    with pytest.raises(ValueError, match="confidences of 3 exits; got 4"):
        ExitPolicy([0.5, None]).exit_of(torch.rand(2, 4))
