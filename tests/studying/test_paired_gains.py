import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from exitwise.studying.comparison import PLACES, Pair, chance, gains, holm, verdict
from exitwise.studying.plan import Plan

BETTER, WORSE, SAME = (1.0, 1.1, 0.9, 1.0), (-1.0, -1.2, -0.8, -1.1), (0.4, -0.5, 0.2, -0.1)


def run(recipe, variant, seed, gain=0.0, updates=10):
    """Accuracy rises from 0.5 to 0.7 by the MACs; a gain in points at all places."""
    curve = [[p, macs, 0.5 + 0.02 * macs + gain / 100] for p, macs in ((0.1, 0.0), (1.0, 5.0), (1.9, 10.0))]
    exits = [0.5 + gain / 100, 0.7 + gain / 100]
    return {"recipe": recipe, "variant": variant, "seed": seed, "updates": updates, "exits": exits, "curve": curve}


def study(**variants):
    """Runs and pairs of variants by their gains on each recipe, seed by seed."""
    names = [f"r{number}" for number in range(max(map(len, variants.values())))]
    runs, pairs = [], []
    for number, recipe in enumerate(names):
        runs += [run(recipe, "uniform", seed, seed / 10) for seed in range(4)]
        for variant, each in variants.items():
            runs += [run(recipe, variant, seed, seed / 10 + gain) for seed, gain in enumerate(each[number])]
            pairs.append(Pair(recipe, variant, "time", 10, 10))
    settings = {name: {"lr": number} for number, name in enumerate(("uniform", *variants), start=1)}
    return pairs, runs, {name: {} for name in names}, settings


def judged(recipes_needed=1, **variants):
    pairs, runs, recipes, settings = study(**variants)
    rule = {"recipes": recipes_needed}
    plan = Plan(stage="select", recipes=recipes, variants=settings, seeds=[0, 1, 2, 3], rule=rule)
    return verdict(plan, gains(pairs, runs, "uniform"))


def test_gains_are_means_of_paired_differences():
    pairs, runs, *_ = study(a=[BETTER])
    found = gains(pairs, runs, "uniform")
    assert [gain.place for gain in found] == list(PLACES)
    for gain in found:
        assert gain.mean == pytest.approx(1.0)
        assert gain.half_width == pytest.approx(t.ppf(0.975, 3) * np.std(BETTER, ddof=1) / 2)
        assert gain.p == pytest.approx(5 * ttest_1samp(BETTER, 0).pvalue)
        assert gain.seeds == 4


def test_a_gain_in_one_quarter_shows_there():
    runs = [run("r", "uniform", seed) for seed in range(2)] + [run("r", "a", seed) for seed in range(2)]
    for each in runs[2:]:
        each["curve"] = [[p, macs, accuracy + 0.1 * (macs < 5)] for p, macs, accuracy in each["curve"]]
    found = {gain.place: gain.mean for gain in gains([Pair("r", "a", "time", 10, 10)], runs, "uniform")}
    assert found["cheapest quarter"] > 7
    assert found["dearest quarter"] == pytest.approx(0)
    assert found["first exit"] == found["last exit"] == 0


def test_lengths_and_seeds_must_fit():
    runs = [run("r", "uniform", 0, updates=20), run("r", "uniform", 0, 5), run("r", "a", 0, 1), run("r", "a", 1, 1)]
    found = gains([Pair("r", "a", "updates", 10, 20), Pair("r", "b", "updates", 10, 10)], runs, "uniform")
    assert [(gain.seeds, round(gain.mean, 6), gain.half_width, gain.p) for gain in found] == [(1, 1, None, None)] * 5


def test_chance_is_students():
    for values in (BETTER, SAME):
        assert chance(np.array(values)) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert chance(np.zeros(3)) == 1
    assert chance(np.ones(3)) == 1
    assert chance(np.ones(1)) is None


def test_holm_as_by_its_definition():
    """Rejected at a level is what the step-down procedure rejects."""
    values = [0.03, 0.001, 0.04, 0.013, 0.2]
    corrected = holm(values)
    for level in np.linspace(0.001, 0.999, 50):
        rejected = set()
        for rank, k in enumerate(np.argsort(values)):
            if values[k] > level / (len(values) - rank):
                break
            rejected.add(k)
        assert {k for k, p in enumerate(corrected) if p <= level} == rejected
    assert holm([]) == []


def test_the_better_variant_is_used():
    said = judged(a=[SAME], b=[BETTER])
    assert said.use == "b"
    assert said.sentence.startswith("Use b: at equal time along the curve it gains +1.00 ± ")
    assert "Holm over 10 comparisons" in said.sentence


@pytest.mark.parametrize("found", [[SAME, SAME], [BETTER, WORSE], [BETTER, SAME]])
def test_none_is_better_unless_it_gains_on_enough_recipes_and_loses_on_none(found):
    said = judged(2, a=found)
    assert said.use == "uniform"
    assert "No variant is shown to be better than uniform" in said.sentence
    assert "the nearest, a, gains" in said.sentence


def test_nothing_is_said_of_nothing():
    assert "Nothing can be said yet" in judged(a=[()]).sentence
