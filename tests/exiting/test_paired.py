"""Differences on the same samples, and their intervals."""

from itertools import product

import numpy as np
import pytest

from exitwise.exiting.paired import Paired, paired_interval


def test_what_is_gained_and_lost_is_counted():
    right = np.array([1, 1, 0, 0, 1], bool)
    reference = np.array([1, 0, 1, 1, 1], bool)
    paired = Paired.of(right, reference)
    assert paired == (1, 2, 5)
    assert paired.difference == pytest.approx(right.mean() - reference.mean())
    assert paired.is_noise
    assert not Paired(2, 40, 1000).is_noise
    assert str(Paired(30, 33, 1000)) == "-0.3 points [-1.9, +1.3]"


def test_nothing_differs_is_not_nothing_can_differ():
    low, high = Paired(0, 0, 100).interval()
    assert 0.01 < high < 0.04
    assert low == -high


@pytest.mark.parametrize("samples", [100, 200, 500, 2000, 10_000])
def test_intervals_keep_their_level(samples):
    generator = np.random.default_rng(samples)
    for discordant, share in product([0.005, 0.01, 0.02, 0.05, 0.1, 0.2], [0, 0.1, 0.25, 0.5]):
        chances = discordant * share, discordant * (1 - share)
        gained, lost, _ = generator.multinomial(samples, [*chances, 1 - discordant], size=20_000).T
        low, high = paired_interval(gained, lost, samples)
        difference = chances[0] - chances[1]
        print(f"n {samples}, discordant {discordant}, share {share}: width {100 * (high - low).mean():.2f} points")
        covered = ((low <= difference + 1e-12) & (difference - 1e-12 <= high)).mean()
        assert covered >= 0.93, (discordant, share)
        if samples * discordant >= 10:
            assert covered <= 0.98, (discordant, share)
        assert (high <= 1).all()
        assert (low >= -1).all()
