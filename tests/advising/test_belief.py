"""What is believed of accuracies, against a slow oracle: the same model, by weighing draws of all its numbers."""

import numpy as np
import pytest

from exitwise.advising.belief import (
    GAIN,
    LEVEL,
    OWN,
    OWN_GAIN,
    SLOPE,
    UNKNOWN,
    USUAL,
    Interval,
    Option,
    believe,
    early,
    log_odds,
    paired_noise,
    share_right,
)


def answers(*shares, images=400, seed=0):
    """Which of the same images each network is right on: the easy ones, for all."""
    hardness = np.random.default_rng(seed).permutation(images) / images
    noise = np.random.default_rng(seed + 1).normal(0, 0.1, (images, len(shares)))
    return hardness[:, None] + noise < np.array(shares)


def weighed(imagenet, probed, correct, draws=400_000):
    """Accuracies of networks and weights of draws, from the formulas at the head of the module, one by one."""
    rng = np.random.default_rng(5)
    m, b, g = (rng.normal(*pair, draws) for pair in (LEVEL, SLOPE, GAIN))
    y, z = [], []
    for accuracy in imagenet:
        x = 0.0 if accuracy is None else np.log(accuracy / (1 - accuracy)) - np.log(USUAL / (1 - USUAL))
        y.append(m + b * x + rng.normal(0, UNKNOWN if accuracy is None else OWN, draws))
        z.append(y[-1] - g - rng.normal(0, OWN_GAIN, draws))
    seen = log_odds(share_right(correct))
    off = np.stack([z[index] for index in probed], 1) - seen
    weights = np.exp(-0.5 * np.einsum("di,ij,dj->d", off, np.linalg.inv(paired_noise(correct)), off))
    return 1 / (1 + np.exp(-np.stack(y, 1))), weights / weights.sum()


def test_accuracy_on_larger_images_says_less():
    (alike, smaller) = (
        believe([0.6, 0.8], [], None, [Option(0), Option(1)], 0, less) for less in ([False] * 2, [True] * 2)
    )
    spreads = [np.std(log_odds(draws[:, 1]) - log_odds(draws[:, 0])) for draws in (alike, smaller)]
    assert spreads[0] ** 2 + 2 * (UNKNOWN**2 - OWN**2) == pytest.approx(spreads[1] ** 2, rel=0.03)


@pytest.mark.parametrize(
    ("imagenet", "probed", "shares"),
    [([0.75, 0.8], [0], (0.7,)), ([None, 0.7], [0], (0.9,)), ([0.75, 0.78, 0.6], [0, 1], (0.7, 0.75))],
)
def test_the_belief_is_that_of_weighed_draws(imagenet, probed, shares):
    correct = answers(*shares, images=60)
    found = believe(imagenet, probed, correct, [Option(index) for index in range(len(imagenet))])
    expected, weights = weighed(imagenet, probed, correct)
    mean = weights @ expected
    spread = np.sqrt(weights @ (expected - mean) ** 2)
    assert found.mean(0) == pytest.approx(mean, abs=0.01)
    assert found.std(0) == pytest.approx(spread, abs=0.01)


def test_less_is_sure_of_what_was_not_probed_and_least_where_nothing_was():
    correct = answers(0.7)
    probed, other = (Interval.of(each) for each in believe([0.75, 0.75], [0], correct, [Option(0), Option(1)]).T)
    (nothing,) = (Interval.of(each) for each in believe([0.75], [], None, [Option(0)]).T)
    widths = [each.high - each.low for each in (probed, other, nothing)]
    assert widths == sorted(widths)
    assert probed.low < 0.7 < probed.mean < probed.high
    assert nothing.high - nothing.low > 0.5


def test_networks_on_the_same_images_are_told_apart_better_than_each_is_known():
    correct = answers(0.6, 0.85, images=3000)
    draws = believe([0.7, 0.8], [0, 1], correct, [Option(0), Option(1)])
    first, second, difference = (Interval.of(each) for each in (*draws.T, draws[:, 1] - draws[:, 0]))
    assert first.high > second.low
    assert difference.low > 0


def test_a_network_is_as_sure_of_itself_with_exits_as_the_images_and_fine_tuning_allow():
    full = answers(0.8, images=2000)[:, 0]
    worse = full & (np.arange(2000) % 4 > 0)
    same, less = early(0, full, full), early(0, full, worse)
    assert same == Option(0, 0.0, pytest.approx(OWN_GAIN))
    assert less.gain == pytest.approx(float(log_odds(worse.mean()) - log_odds(full.mean())), abs=0.01)
    draws = believe([0.75], [0], full[:, None], [Option(0), same, less])
    assert abs(draws[:, 1] - draws[:, 0]).mean() < 0.02
    assert Interval.of(draws[:, 2] - draws[:, 0]).high < 0


def test_probes_that_are_right_on_all_images_are_no_infinity():
    draws = believe([0.75, 0.8], [0, 1], np.ones((50, 2), dtype=bool), [Option(0), Option(1)])
    assert np.isfinite(draws).all()
    assert draws.mean() > 0.9
