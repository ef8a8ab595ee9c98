"""Ensembles of the exits so far, beside loops over their formulas and searches of grids for what is fitted."""

import math

import numpy as np
import pytest

import planted
from exitwise.exiting.measures import create_measure, measure_from_json
from exitwise.exiting.measures.fitted_ensemble import RIDGE

COSTS = (10.0, 30.0, 60.0)


def softmax(scores):
    odds = [math.exp(score - max(scores)) for score in scores]
    return [each / sum(odds) for each in odds]


def mixed(logits, exit, weights, temperatures):
    """The mixture at an exit, sample by sample and class by class."""
    found = []
    for sample in logits.tolist():
        parts = [softmax([score / temperatures[j] for score in sample[j]]) for j in range(exit + 1)]
        found.append([sum(w * part[c] for w, part in zip(weights, parts, strict=True)) for c in range(len(parts[0]))])
    return np.array(found)


def negative_log_likelihood(logits, targets, exit, weights, temperatures):
    probabilities = mixed(logits, exit, weights, temperatures)
    return -np.mean([math.log(row[target]) for row, target in zip(probabilities, targets, strict=True)])


@pytest.mark.parametrize("name", ["running-ensemble", "fitted-ensemble"])
def test_reads_what_the_formula_says(name):
    logits, targets, _ = planted.exits_that_err_apart(60)
    measure = create_measure(name).fit(logits, targets, COSTS)
    state = None
    for exit in range(3):
        if name == "running-ensemble":
            weights = [cost / sum(COSTS[: exit + 1]) for cost in COSTS[: exit + 1]]
        else:
            weights = measure.weights[exit]
        expected = mixed(logits, exit, weights, measure.temperatures)
        confidence, prediction, state, probabilities = measure.read(logits[:, exit], exit, state)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        np.testing.assert_allclose(confidence, expected.max(axis=1), atol=1e-6)
        np.testing.assert_array_equal(prediction, expected.argmax(axis=1))


def test_temperatures_of_the_running_ensemble_are_the_best_of_a_grid_one_after_the_other():
    logits, targets, _ = planted.exits_that_err_apart(80)
    found = create_measure("running-ensemble").fit(logits, targets, COSTS)
    assert found.weights == pytest.approx((0.1, 0.3, 0.6))
    chosen = []
    for exit in range(3):
        weights = [cost / sum(COSTS[: exit + 1]) for cost in COSTS[: exit + 1]]
        losses = {
            t: negative_log_likelihood(logits, targets, exit, weights, [*chosen, t]) for t in np.geomspace(0.2, 5, 60)
        }
        best = min(losses, key=losses.get)
        assert found.temperatures[exit] == pytest.approx(best, rel=0.06)
        chosen.append(found.temperatures[exit])
        assert negative_log_likelihood(logits, targets, exit, weights, chosen) <= losses[best] + 1e-9


def test_the_fitted_mixture_is_the_best_of_a_grid():
    logits, targets, _ = planted.exits_that_err_together(120)
    found = create_measure("fitted-ensemble").fit(logits, targets, COSTS)

    def loss(weights, t):
        far = sum((w - 1 / 3) ** 2 for w in weights)
        temperatures = [*found.temperatures[:2], t]
        return negative_log_likelihood(logits, targets, 2, weights, temperatures) + RIDGE / len(targets) * far

    steps = np.linspace(0, 1, 9)
    grid = [
        loss((a, b, 1 - a - b), t)
        for a in steps
        for b in steps
        if a + b <= 1
        for t in np.geomspace(0.25, 4, 7).tolist()
    ]
    assert loss(found.weights[2], found.temperatures[2]) <= min(grid) + 1e-9
    assert found.weights[2][2] > 0.7  # the last exit is by far the best


def test_few_samples_are_mixed_evenly_and_many_as_they_say():
    few, many = (
        create_measure("fitted-ensemble").fit(*planted.exits_that_err_together(samples)[:2], COSTS).weights[2][2]
        for samples in (8, 2000)
    )
    assert abs(few - 1 / 3) < abs(many - 1 / 3)


def test_given_temperatures_are_kept():
    logits, targets, _ = planted.exits_that_err_apart(40)
    for name in ("running-ensemble", "fitted-ensemble"):
        assert create_measure(name, (0.5, 1.5, 2.5)).fit(logits, targets, COSTS).temperatures == (0.5, 1.5, 2.5)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("running-ensemble", {"weights": [1.0, -1.0]}, "weights must be positive numbers"),
        ("fitted-ensemble", {"weights": [[1.0], [0.7, 0.7]]}, "expected 2 weights of 0 or more that sum to 1"),
        ("fitted-ensemble", {"weights": [[1.0], [float("nan"), 1.0]]}, "expected 2 weights of 0 or more that sum to 1"),
        ("fitted-ensemble", {"weights": [[0.5, 0.5]]}, "expected 1 weights"),
    ],
)
def test_other_weights_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        measure_from_json({"measure": name, "temperatures": None, "parameters": parameters})


def test_a_measure_for_another_number_of_exits_is_refused():
    for name, parameters in (
        ("running-ensemble", {"weights": [1.0, 2.0]}),
        ("accuracy", {"knots": [[[0, 0], [1, 1]]]}),
    ):
        measure = measure_from_json({"measure": name, "temperatures": None, "parameters": parameters})
        with pytest.raises(ValueError, match="of 3 exits; got"):
            measure.check(3)
