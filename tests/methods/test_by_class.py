"""Losses that know how frequent classes are, beside sums by hand."""

import math

import pytest
import torch

import exitwise as ew

COUNTS = (100, 10, 1)


def losses(name, **options):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    return ew.create_loss(name, class_counts=COUNTS, **options).of(logits, targets), logits, targets


def test_rare_classes_count_by_their_effective_number():
    found, logits, targets = losses("class-balanced", overlap=0.9)
    factors = [0.1 / (1 - 0.9**count) for count in COUNTS]
    for i, j in ((0, 0), (1, 1), (2, 1)):
        target = int(targets[i])
        plain = -logits[i, j].log_softmax(0)[target]
        assert float(found[i, j]) == pytest.approx(float(plain) * factors[target] / (sum(factors) / 3))
    alike = losses("class-balanced", overlap=0)[0]
    torch.testing.assert_close(alike, ew.create_loss("labels").of(logits, targets))


def test_logits_are_handicapped_by_the_shares_of_their_classes():
    found, logits, targets = losses("logit-adjusted", adjustment=2.0)
    added = torch.tensor([2 * math.log(count / 111) for count in COUNTS], dtype=torch.float64)
    for i, j in ((0, 0), (4, 1), (5, 0)):
        assert float(found[i, j]) == pytest.approx(-float((logits[i, j] + added).log_softmax(0)[targets[i]]))


def test_a_class_without_samples_is_refused():
    with pytest.raises(ValueError, match=r"expected samples of every class; got \[1, 0\]"):
        ew.create_loss("logit-adjusted", class_counts=[1, 0])
