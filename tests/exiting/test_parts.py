"""Classes and groups under a policy: what each loses and costs, and how sure that is."""

import numpy as np
import pytest

from exitwise.exiting.paired import Paired
from exitwise.exiting.parts import Part, losing, mean_of_counts, parts_of


def test_parts_are_counted_sample_by_sample():
    generator = np.random.default_rng(0)
    labels, right, reference = (generator.integers(0, high, 60) for high in (4, 2, 2))
    labels[labels == 2] = 0
    exits = generator.integers(0, 3, 60)
    parts = parts_of(labels, "abcd", right == 1, reference == 1, exits, 3)
    assert [part.name for part in parts] == ["a", "b", "d"], "nobody is of c"
    for part in parts:
        mine = [i for i in range(60) if "abcd"[labels[i]] == part.name]
        gained = sum(right[i] and not reference[i] for i in mine)
        lost = sum(reference[i] and not right[i] for i in mine)
        assert part.paired == Paired(gained, lost, len(mine))
        assert part.right == sum(right[i] for i in mine)
        assert part.leaving == tuple(sum(exits[i] == k for i in mine) for k in range(3))
        assert part.accuracy.mean == pytest.approx(part.right / len(mine))
        assert part.cost((1, 5, 9)).mean == pytest.approx(np.mean([(1, 5, 9)[exits[i]] for i in mine]))


@pytest.mark.parametrize("samples", [20, 50, 200, 1000])
def test_intervals_of_means_keep_their_level(samples):
    """Of accuracies, and of costs that are nearly or quite the same for all."""
    generator = np.random.default_rng(samples)
    values = np.array([1.0, 4.0, 10.0])
    for shares in [(0.01, 0.0, 0.99), (0.1, 0.0, 0.9), (0.5, 0.0, 0.5), (0.9, 0.09, 0.01), (0.3, 0.4, 0.3)]:
        counts, how_often = np.unique(generator.multinomial(samples, shares, size=4000), axis=0, return_counts=True)
        truth = values @ shares
        found = [mean_of_counts(values.tolist(), count.tolist()) for count in counts]
        covered = sum(n for n, (_, low, high) in zip(how_often, found, strict=True) if low <= truth <= high) / 4000
        assert covered >= 0.93, (shares, covered)
        assert all(1 <= low <= mean <= high <= 10 for mean, low, high in found)


def test_what_is_the_same_for_all_is_not_certain():
    mean, low, high = mean_of_counts((1, 10), (0, 20))
    assert mean == high == 10
    assert 7 < low < 9.9


def test_only_a_loss_beyond_chance_is_called_one():
    """With many classes some lose by chance: of fifty that lose nothing on average, hardly ever one is named."""
    generator = np.random.default_rng(0)
    named = 0
    for _ in range(200):
        gained, lost = generator.multinomial(100, [0.03, 0.03, 0.94], size=50).T[:2]
        parts = [Part(str(k), Paired(*pair, 100), 0) for k, pair in enumerate(zip(gained, lost, strict=True))]
        named += bool(losing(parts, 0.01))
    assert named / 200 <= 0.05
    sure = [Part("a", Paired(0, 30, 100), 0), Part("b", Paired(0, 1, 1000), 0), Part("c", Paired(0, 40, 100), 0)]
    assert [part.name for part in losing(sure, 0.01)] == ["c", "a"]
    assert [part.name for part in losing(sure, 0.35)] == ["c"]
