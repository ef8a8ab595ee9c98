"""The table of measures: right on networks of which it is known which measure must win."""

import numpy as np
import pytest

import planted
from exitwise.exiting import comparison
from exitwise.exiting.comparison import best_measure, measure_gains
from exitwise.exiting.fitting import fit_and_read, folds
from exitwise.exiting.rule import exits_taken


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "MEMBERS", 60)
        patch.setattr(comparison, "RESAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def apart(quick):
    return measure_gains(*planted.exits_that_err_apart(400))


def named(gains):
    return {each.measure: each for each in gains}


def test_exits_that_err_apart_are_heard_together(apart):
    gain = named(apart)["running-ensemble"]
    best = best_measure(apart, 400)
    assert best.measure not in ("max-probability", "margin", "entropy")
    assert best.whole.mean >= gain.whole.mean
    assert gain.whole.low > 0.02
    assert gain.dearest.mean > gain.whole.mean > gain.cheapest.mean


def test_exits_that_err_together_are_not():
    gains = measure_gains(*planted.exits_that_err_together(400))
    assert named(gains)["running-ensemble"].whole.high < 0
    assert named(gains)["running-ensemble"].dearest.high < 0
    assert best_measure(gains, 400).measure == "max-probability" == gains[0].measure


def test_an_exit_that_is_passed_in_vain_is_seen_by_one_threshold():
    """The second exit says what the first says and costs ten units more: nobody should go there."""
    logits, targets, _ = planted.exits_that_err_together(400)
    gains = named(measure_gains(logits, targets, (80.0, 90.0, 100.0)))
    assert min(gains["accuracy"].whole.low, gains["deferral"].whole.low) > 0


def curve(name, logits, targets, costs, seed=0):
    """Accuracy and cost of each sample at each budget, by loops: the dearest thresholds of many that it allows."""
    measure, confidences, predictions = fit_and_read(name, logits, targets, costs, seed=seed)
    assert measure.family == "geometric"
    right, spent = (np.zeros((len(targets), comparison.BUDGETS)) for _ in range(2))
    for part in folds(len(targets), seed):
        rest = [i for i in range(len(targets)) if i not in set(part.tolist())]
        family = comparison.members(confidences[rest], comparison.MEMBERS, comparison.REACH, "geometric")
        for place, budget in enumerate(np.linspace(costs[0], costs[-1], comparison.BUDGETS)):
            spending = [
                (np.mean([costs[k] for k in exits_taken(confidences[rest], policy.thresholds)]), policy)
                for policy, _ in family
            ]
            allowed = [pair for pair in spending if pair[0] <= budget * (1 + 1e-9)]
            best = max(allowed or [spending[0]], key=lambda pair: pair[0])[1]
            for i in part:
                k = exits_taken(confidences[i : i + 1], best.thresholds)[0]
                right[i, place], spent[i, place] = predictions[i, k] == targets[i], costs[k]
    return right, spent


def test_gains_and_intervals_are_those_of_slow_loops(monkeypatch):
    monkeypatch.setattr(comparison, "MEMBERS", 30)
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    logits, targets, costs = planted.exits_that_err_apart(60)
    grid = np.linspace(costs[0], costs[-1], comparison.BUDGETS)
    curves = [curve(name, logits, targets, costs) for name in ("max-probability", "running-ensemble")]

    def gain(rows):
        lines = []
        for right, spent in curves:
            accuracy, cost = right[rows].mean(axis=0), spent[rows].mean(axis=0)
            order = np.argsort(cost, kind="stable")
            lines.append(np.interp(grid, cost[order], accuracy[order]))
        return lines[1] - lines[0]

    monkeypatch.setattr(
        comparison, "MEASURES", {name: comparison.MEASURES[name] for name in ("max-probability", "running-ensemble")}
    )
    found = named(measure_gains(logits, targets, costs))["running-ensemble"]
    generator = np.random.default_rng(0)
    counts = np.concatenate([generator.multinomial(60, np.full(60, 1 / 60), size=50) for _ in range(2)])
    drawn = np.array([gain(np.repeat(np.arange(60), row)) for row in counts])
    for part, each in ((slice(None), found.whole), (slice(6), found.cheapest), (slice(-6, None), found.dearest)):
        expected = [gain(np.arange(60))[part].mean(), *np.percentile(drawn[:, part].mean(axis=1), [2.5, 97.5])]
        np.testing.assert_allclose(each, expected, atol=1e-9)


def test_the_usual_measure_comes_first_and_gains_nothing(apart):
    first = apart[0]
    assert first.measure == "max-probability"
    assert tuple(first.whole) == (0, 0, 0)
