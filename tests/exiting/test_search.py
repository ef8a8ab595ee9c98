import itertools

import numpy as np
import pytest
import torch

from exitwise import calibrate_macs, calibrate_proportions, exit_proportions
from exitwise.budgets import AUTHORS_BUDGETS
from exitwise.exiting.calibration import calibrate_accuracy
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.search import ThresholdSearch

COSTS = (10.0, 25.0, 60.0)


def recorded(samples, exits=3, seed=0, steps=None):
    """Confidences that say something of being right, more so at later exits."""
    generator = torch.Generator().manual_seed(seed)
    skill = torch.rand(samples, 1, generator=generator) + torch.linspace(0, 0.4, exits)
    correct = torch.rand(samples, exits, generator=generator) < skill.clamp(max=0.95)
    confidences = (skill / 1.5 + 0.2 * torch.rand(samples, exits, generator=generator)).clamp(0, 1)
    if steps is not None:
        confidences = (confidences * steps).round() / steps
    return confidences.numpy(), correct.numpy()


def result(policy, confidences, correct, costs=COSTS):
    exits = policy.exit_of(confidences)
    return np.take_along_axis(correct, exits[:, None], 1).mean(), np.array(costs)[exits].mean()


def every_policy(confidences):
    levels = [[None, *sorted(set(confidences[:, k].tolist()))] for k in range(confidences.shape[1] - 1)]
    return [ExitPolicy(thresholds) for thresholds in itertools.product(*levels)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [None, 5])
def test_near_the_best_of_all_thresholds(seed, steps):
    confidences, correct = recorded(14, seed=seed, steps=steps)
    search = ThresholdSearch(confidences, correct, COSTS)
    results = [result(policy, confidences, correct) for policy in every_policy(confidences)]
    for budget in (15.0, 30.0, 45.0):
        start, _ = calibrate_macs(confidences, COSTS, budget)
        accuracy, cost = result(search.best_accuracy(budget, start), confidences, correct)
        assert cost <= budget * (1 + 1e-9)
        assert accuracy >= result(start, confidences, correct)[0]
        best = max(accuracy for accuracy, cost in results if cost <= budget * (1 + 1e-12))
        assert accuracy >= best - 1.01 / 14  # one sample from the best, at most
    full = correct[:, -1].mean()
    start, _ = calibrate_accuracy(confidences, correct, COSTS, 0.05)
    accuracy, cost = result(search.least_cost(full - 0.05, start), confidences, correct)
    assert accuracy >= full - 0.05 - 1e-9
    assert cost <= result(start, confidences, correct)[1]
    assert cost <= 1.1 * min(cost for accuracy, cost in results if accuracy >= full - 0.05 - 1e-9)


def test_never_below_the_geometric_family_along_the_curve():
    confidences, correct = recorded(2000, exits=5, seed=9)
    costs = (10.0, 20.0, 40.0, 70.0, 100.0)
    search = ThresholdSearch(confidences, correct, costs)
    gains = []
    for p in AUTHORS_BUDGETS:
        start = calibrate_proportions(confidences, exit_proportions(p, 5))
        before, budget = result(start, confidences, correct, costs)
        after, cost = result(search.best_accuracy(budget, start), confidences, correct, costs)
        assert cost <= budget * (1 + 1e-9)
        gains.append(after - before)
    assert min(gains) >= 0
    assert max(gains) > 0.001


def test_bad_budgets_are_refused():
    confidences, correct = recorded(20)
    search = ThresholdSearch(confidences, correct, COSTS)
    with pytest.raises(ValueError, match="a budget must lie between"):
        search.best_accuracy(5.0, ExitPolicy([None, None]))
    with pytest.raises(ValueError, match="at least one sample"):
        ThresholdSearch(np.ones((0, 3)), np.ones((0, 3), dtype=bool), COSTS)


def test_accuracy_calibration_keeps_its_word_and_refuses_nonsense():
    confidences, correct = recorded(500, seed=3)
    full = correct[:, -1].mean()
    costs = []
    for drop in (0.0, 0.01, 0.05, 0.99):
        policy, _ = calibrate_accuracy(confidences, correct, COSTS, drop)
        accuracy, cost = result(policy, confidences, correct)
        assert accuracy >= full - drop - 1e-9
        costs.append(cost)
    assert costs == sorted(costs, reverse=True)
    with pytest.raises(ValueError, match="max_accuracy_drop is a share of accuracy below 1"):
        calibrate_accuracy(confidences, correct, COSTS, 1.5)
