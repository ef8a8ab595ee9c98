import pytest
import torch

import reference
from exitwise.budgets import check_proportions, exit_count, exit_proportions, proportions_for_macs
from exitwise.weighting.allocation import allocate, meta_loss


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0, 1.95])
def test_proportions_are_powers_of_p(p):
    assert exit_proportions(p, 5) == pytest.approx(reference.proportions(p, 5))


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_p_must_be_positive(p):
    with pytest.raises(ValueError, match="positive number; got"):
        exit_proportions(p, 3)


def test_a_macs_budget_is_met_in_expectation():
    costs = [10.0, 30.0, 70.0, 100.0]
    for budget in (10.0, 10.5, 40.0, 52.5, 99.0, 100.0):
        proportions = proportions_for_macs(budget, costs)
        assert sum(q * c for q, c in zip(proportions, costs, strict=True)) == pytest.approx(budget, rel=1e-9)
        assert sum(proportions) == pytest.approx(1)


@pytest.mark.parametrize("budget", [9.9, 100.1, float("nan")])
def test_a_budget_out_of_reach_is_refused(budget):
    with pytest.raises(ValueError, match="between the first exit's cost and the full network's"):
        proportions_for_macs(budget, [10.0, 100.0])


@pytest.mark.parametrize(
    ("proportions", "message"),
    [([0.5, 0.5], "expected 3 exit proportions"), ([0.5, 0.7, -0.2], "0 or more"), ([0.5, 0.3, 0.1], "sum to 0.9")],
)
def test_wrong_proportions_are_refused(proportions, message):
    with pytest.raises(ValueError, match=message):
        check_proportions(proportions, 3)


def test_counts_do_not_suffer_from_binary_fractions():
    assert exit_count(100, 0.29) == 29
    assert exit_count(10, 0.7) == 7
    assert exit_count(12, 0.3) == 3


@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize("p", [0.05, 0.75, 1.5])
def test_allocation_equals_the_loop(n, p):
    confidences = torch.rand(n, 5).round(decimals=1)  # many ties
    shares = exit_proportions(p, 5)
    assert allocate(confidences, shares).tolist() == reference.take_most_confident(confidences, shares)


@pytest.mark.parametrize("objective", ["per-exit", "share-weighted"])
def test_meta_loss_equals_the_loop_and_skips_empty_exits(objective):
    losses = torch.rand(9, 4, dtype=torch.float64)
    allocation = torch.tensor([0, 0, 3, 1, 0, 3, 1, 0, 0])
    expected = reference.meta_loss(losses, allocation.tolist(), objective)
    assert meta_loss(losses, allocation, objective) == pytest.approx(float(expected), rel=1e-12)


def test_unknown_objective():
    with pytest.raises(ValueError, match="per-exit, share-weighted; got 'mean'"):
        meta_loss(torch.rand(2, 2), torch.zeros(2, dtype=torch.int64), "mean")
