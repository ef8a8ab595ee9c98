"""Scores by class against loops over the samples."""

import numpy as np
import pytest

from exitwise.exiting.scores import Scores, among_top

CLASSES = 7


def drawn(seed, samples=90, exits=3):
    draw = np.random.default_rng(seed)
    return draw.integers(-4, 5, (samples, exits, CLASSES)).astype(float), draw.integers(0, CLASSES - 1, samples)


@pytest.mark.parametrize("seed", range(3))
def test_counts_recalls_and_f1(seed):
    logits, targets = drawn(seed)
    answers = logits[:, 0].argmax(-1)
    scores = Scores.of(answers, targets, CLASSES, None)
    f1, recalls = [], []
    for label in range(CLASSES):
        right = sum(answer == target == label for answer, target in zip(answers, targets, strict=True))
        there, said = sum(targets == label), sum(answers == label)
        recalls.append(right / there if there else None)
        if there or said:
            f1.append(2 * right / (there + said))
        for other in range(CLASSES):
            count = sum((target == label) & (answer == other) for answer, target in zip(answers, targets, strict=True))
            assert scores.confusion[label, other] == count
    assert scores.recalls == pytest.approx(recalls)
    assert recalls[-1] is None
    assert scores.macro_f1 == pytest.approx(sum(f1) / len(f1))
    assert Scores.from_json(scores.to_json()) == scores
    assert sum(count for *_, count in scores.to_json()["confusion"]) == len(targets)


def test_the_five_likeliest():
    logits, targets = drawn(4)
    logits += np.random.default_rng(1).normal(scale=1e-3, size=logits.shape)
    found = among_top(logits, targets)
    for sample, target in enumerate(targets):
        for exit in range(3):
            assert found[sample, exit] == (target in np.argsort(-logits[sample, exit])[:5])
    assert among_top(logits[..., :5], targets % 5) is None
