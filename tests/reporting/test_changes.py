"""Images lost and won, against loops."""

import numpy as np
import pytest
import torch

from exitwise.data import Preprocessing, Split
from exitwise.data.sources import ArraySource
from exitwise.exiting.outputs import Left
from exitwise.reporting.changes import MOST_SWAPS, changes

N = 200


@pytest.fixture
def split():
    images = torch.zeros(N, 1, 8, 8, dtype=torch.uint8)
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 6, N))
    source = ArraySource(images, targets, list("abcdef"), [f"{i}.png" for i in range(N)])
    return Split(source, torch.arange(N), Preprocessing(8, (0.5,), (0.5,), "none"))


def test_what_leaving_early_changes(split):
    rng = np.random.default_rng(1)
    early, standard = rng.integers(0, 6, N), rng.integers(0, 6, N)
    left = Left(early, rng.integers(0, 3, N), rng.random(N))
    found = changes(split, left, standard, 4)
    targets = split.targets.tolist()
    lost = [i for i in range(N) if standard[i] == targets[i] != early[i]]
    won = [i for i in range(N) if early[i] == targets[i] != standard[i]]
    assert (found.lost_count, found.won_count) == (len(lost), len(won))
    assert found.right == sum(early[i] == standard[i] == targets[i] for i in range(N))
    assert found.right + found.wrong + len(lost) + len(won) == N
    for shown, places in ((found.lost, lost), (found.won, won)):
        surest = sorted(places, key=lambda i: -left.confidences[i])[:4]
        assert [each.picture.name for each in shown] == [f"{i}.png" for i in surest]
        assert [each.standard for each in shown] == ["abcdef"[standard[i]] for i in surest]
        assert [each.target for each in shown] == ["abcdef"[targets[i]] for i in surest]
    assert found.swapped == sum(early != standard)
    assert len(found.swaps) == MOST_SWAPS
    counts = [swap.images for swap in found.swaps]
    assert counts == sorted(counts, reverse=True)
    for swap in found.swaps:
        mine = [i for i in range(N) if ("abcdef"[standard[i]], "abcdef"[early[i]]) == (swap.standard, swap.early)]
        assert (swap.images, swap.lost, swap.won) == (len(mine), len({*mine} & {*lost}), len({*mine} & {*won}))


def test_nothing_may_change(split):
    left = Left(split.targets.numpy(), np.zeros(N, np.int64), np.ones(N))
    found = changes(split, left, split.targets.numpy(), 4)
    assert (found.right, found.swaps, found.lost, found.won, found.swapped) == (N, [], [], [], 0)
