"""Learned deferral beside its definition in loops: one price for all exits, by the usual rule."""

import math

import numpy as np
import pytest

import planted
from exitwise.exiting.measures import create_measure, measure_from_json
from exitwise.exiting.rule import exits_taken


def looked_at(sample, exit):
    """What an answer is judged by, from its logits and those of the exit before."""

    def answer(scores):
        odds = [math.exp(score) for score in scores]
        return [each / sum(odds) for each in odds]

    here = answer(sample[exit])
    first, second = sorted(here, reverse=True)[:2]
    even = -sum(p * math.log(p) for p in here) / math.log(len(here))
    agrees, before = 0.0, 0.0
    if exit:
        earlier = answer(sample[exit - 1])
        agrees, before = float(earlier.index(max(earlier)) == here.index(first)), max(earlier)
    return [first, first - second, math.log((first + 1e-3) / (1 - first + 1e-3)), even, agrees, before]


def chances(measure, sample, exit):
    """The probability that this exit is right, and each later one."""
    features = looked_at(sample, exit)
    scores = [row[0] + sum(w * x for w, x in zip(row[1:], features, strict=True)) for row in measure.coefficients[exit]]
    return [1 / (1 + math.exp(-score)) for score in scores]


@pytest.fixture(scope="module")
def fitted():
    logits, targets, costs = planted.exits_that_err_apart(300)
    return create_measure("deferral").fit(logits, targets, costs), logits, targets, costs


@pytest.mark.parametrize("price", [0.0, 0.3, 1.5])
def test_the_usual_rule_goes_on_while_a_later_exit_gains_more_than_the_price(fitted, price):
    measure, logits, _, costs = fitted
    expected = []
    for sample in logits.astype(float).tolist():
        for exit in range(3):
            here, *later = chances(measure, sample, exit)
            ahead = [(costs[exit + 1 + i] - costs[exit]) / costs[-1] for i in range(len(later))]
            if not any(chance - here > price * cost for chance, cost in zip(later, ahead, strict=True)):
                break
        expected.append(exit)
    confidences, _ = measure.read_all(logits)
    threshold = 0.5 - price / (2 + 2 * price)
    assert len(set(expected)) > 1
    assert (exits_taken(confidences, (threshold, threshold)) == np.array(expected)).mean() > 0.995  # all but ties


def test_coefficients_are_those_of_a_logistic_regression(fitted):
    """No small step from them makes the held-out answers likelier, the ridge included."""
    measure, logits, targets, _ = fitted

    def loss(row, later):
        total = sum(w * w for w in row[1:]) / 2
        for sample, target in zip(logits.astype(float).tolist(), targets.tolist(), strict=True):
            right = max(range(5), key=lambda c: sample[later][c]) == target
            score = row[0] + sum(w * x for w, x in zip(row[1:], looked_at(sample, 1), strict=True))
            total += math.log1p(math.exp(-score if right else score))
        return total

    for later in (1, 2):
        found = measure.coefficients[1][later - 1]
        best = loss(found, later)
        for place in range(7):
            for step in (-0.05, 0.05):
                moved = [*found]
                moved[place] += step
                assert loss(moved, later) > best - 1e-3


def test_shares_that_are_no_numbers_are_refused():
    for share in (float("nan"), 0.0, "much"):
        parameters = {"coefficients": [[[0.0] * 7]], "shares": [share]}
        with pytest.raises(ValueError, match=r"shares must be positive numbers|expected the parameters of deferral"):
            measure_from_json({"measure": "deferral", "temperatures": None, "parameters": parameters})


def test_parameters_of_other_shapes_are_refused():
    for parameters in (
        {"coefficients": [[[0.0] * 6]], "shares": [1.0]},
        {"coefficients": [[[0.0] * 7]], "shares": None},
    ):
        with pytest.raises(ValueError, match=r"expected .*coefficients"):
            measure_from_json({"measure": "deferral", "temperatures": None, "parameters": parameters})
