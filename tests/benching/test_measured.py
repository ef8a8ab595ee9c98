"""Rows are compared sample by sample and batch by batch: what they share cancels out."""

import numpy as np
import pytest
from scipy.stats import t

from exitwise.benching.measured import Measured
from exitwise.runs.records.bench import Network, Row

ONE, TWO = Network("one", "early"), Network("two", "full")


def row(network, seconds):
    return Row(network, "eager", 1, float(np.median(seconds, axis=0).mean()), 0, 0, 0)


def measured_speed(first, second):
    seconds = {(ONE, "eager", 1): np.array(first), (TWO, "eager", 1): np.array(second)}
    rows = [row(network, values) for (network, *_), values in seconds.items()]
    return Measured({}, seconds).speed(*rows)


def test_a_speed_is_the_ratio_of_means_with_the_interval_of_batches():
    first, second = [[1.0, 2.0, 3.0, 2.0]] * 3, [[5.0, 3.0, 4.0, 4.0]] * 3
    speed = measured_speed(first, second)
    off = np.array(second[0]) - 2 * np.array(first[0])
    assert speed == pytest.approx((2, t.ppf(0.975, 3) * off.std(ddof=1) / 2 / 2))
    assert (speed.low, speed.high) == pytest.approx((2 - speed.half, 2 + speed.half))


def test_what_slows_both_says_nothing_and_neither_does_a_hiccup():
    passes = np.array([[1.0], [1.5], [0.7]]) * np.linspace(1, 4, 8)
    hiccup = 2 * passes
    hiccup[1, 3] = 50
    assert measured_speed(passes, 2 * passes) == pytest.approx((2, 0))
    assert measured_speed(passes, hiccup).mean == pytest.approx(2, rel=0.05)
    assert measured_speed(passes, hiccup).half < 0.1


def test_noise_of_one_alone_widens_the_interval():
    numbers = np.random.default_rng(0)
    noise = [numbers.uniform(0, wide, (3, 40)) for wide in (0.1, 1)]
    narrow, wide = (measured_speed(1 + each, 2 + np.zeros((3, 40))).half for each in noise)
    assert 0 < narrow < wide / 4


def test_forms_with_fewer_batches_are_compared_on_those():
    assert measured_speed([[1.0, 1.0, 1.0]] * 3, [[2.0, 2.0]] * 3) == pytest.approx((2, 0))
