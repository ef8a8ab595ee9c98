"""Probes of features, and what their exits would save."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from exitwise.advising.leaving import leaving
from exitwise.advising.probe import featured, probe, without_classifier
from exitwise.errors import DataError


class Deep(nn.Module):
    """Blocks of one kind, then a classifier of 7 classes."""

    def __init__(self, linear=True):
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1), nn.ReLU()) for k in range(6))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 7) if linear else nn.Conv2d(8, 7, 1)
        for block in self.blocks:
            nn.init.kaiming_normal_(block[0].weight)

    def forward(self, x):
        x = self.pool(self.blocks(x))
        return self.fc(x.flatten(1)) if isinstance(self.fc, nn.Linear) else self.fc(x).flatten(1)


def coloured(count=240, seed=0):
    """Images whose class is their strongest colour."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 3, 12, 12, generator=generator) * 0.3
    images[torch.arange(count), targets] += 2
    return images, targets


def batches(images, targets):
    return list(zip(images.split(32), targets.split(32), strict=True))


@pytest.fixture(autouse=True)
def _few_updates(monkeypatch):
    monkeypatch.setattr("exitwise.advising.probe.UPDATES", 40)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Deep()


def test_the_classifier_is_taken_off_a_copy(network):
    before = copy.deepcopy(network.state_dict())
    images, _ = coloured(4)
    body = without_classifier(network, images[:1])
    assert torch.equal(network.fc(body(images)), network(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    plain = Deep(linear=False)
    assert torch.equal(without_classifier(plain, images[:1])(images), plain(images))


def test_a_probe_tells_easy_classes_apart_at_every_depth(network):
    images, targets = coloured()
    found = probe(featured(network, images[:1], 3), batches(images, targets))
    assert found.logits.shape == (240, 3, 3)
    assert np.array_equal(found.targets, targets.numpy())
    right = found.logits.argmax(-1) == found.targets[:, None]
    assert right.mean(0).min() > 0.7
    assert np.array_equal(found.correct, right[:, -1])


def test_a_probe_of_chance_is_no_better_than_chance(network):
    """Heads that were fitted on the images that they are asked about would be."""
    images, targets = coloured(150)
    shuffled = targets[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    found = probe(featured(network, torch.zeros(1, 3, 12, 12), 2), batches(images, shuffled))
    assert found.correct.mean() < 0.5


def test_a_network_that_cannot_be_cut_is_probed_at_its_end():
    class Deciding(Deep):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    images, targets = coloured(80)
    assert probe(featured(Deciding(), images[:1], 3), batches(images, targets)).logits.shape == (80, 1, 3)


@pytest.mark.parametrize(("count", "classes"), [(40, 3), (80, 1)])
def test_too_little_to_probe_on(network, count, classes):
    images, targets = coloured(count)
    with pytest.raises(DataError, match="expected at least 50 samples, of two classes"):
        probe(featured(network, images[:1], 2), batches(images, targets % classes))


def planted(count=400):
    """Logits of two exits: the first is sure and right on every second sample, and knows nothing of the others."""
    targets = np.arange(count) % 5
    logits = np.zeros((count, 2, 5), dtype=np.float32)
    easy = np.arange(count) % 2 == 0
    logits[easy, 0, targets[easy]] = 6
    logits[~easy, 0, (targets[~easy] + 1) % 5] = np.random.default_rng(0).uniform(0.2, 1, count // 2)
    logits[np.arange(count), 1, targets] = 8
    return logits, targets, easy


def test_what_is_easy_leaves_early_and_next_to_nothing_is_lost():
    logits, targets, _ = planted()
    for budget in (None, 0.65):
        left = leaving(logits, targets, (0.3, 1.0), budget)
        assert left.correct.mean() > 0.97
        assert left.shares == pytest.approx((0.5, 0.5), abs=0.03)
        assert left.mean((0.3, 1.0)) == pytest.approx(np.dot(left.shares, (0.3, 1.0)))


def test_a_tight_budget_costs_accuracy():
    logits, targets, easy = planted()
    left = leaving(logits, targets, (0.3, 1.0), 0.3)
    assert left.shares == pytest.approx((1.0, 0.0), abs=0.02)
    assert left.correct.mean() == pytest.approx(easy.mean(), abs=0.02)
