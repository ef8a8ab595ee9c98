"""Recorded outputs of made-up networks, in which it is known which measure must win."""

import numpy as np


def of_probabilities(top, answers, classes):
    """Logits that give each answer its probability, and the others alike."""
    rest = (1 - top) / (classes - 1)
    probabilities = np.repeat(rest[..., None], classes, -1)
    np.put_along_axis(probabilities, answers[..., None], top[..., None], -1)
    return np.log(probabilities).astype(np.float32)


def exits_that_err_apart(samples, seed=0):
    """Three exits, each right by its own luck: together they are right more often than the last one alone."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(5, size=samples)
    logits = generator.normal(size=(samples, 3, 5)) + 1.6 * np.eye(5)[targets][:, None]
    return logits.astype(np.float32), targets, (80.0, 90.0, 100.0)


def exits_that_err_together(samples, seed=0):
    """Two early exits that always say the same and cost the same, and a last one that is right far more often: together
    they outvote it."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(5, size=samples)
    sure = 0.5 + 0.45 * generator.random(samples)
    early = np.where(generator.random(samples) < sure, targets, (targets + 1) % 5)
    late = np.where(generator.random(samples) < 0.95, targets, (targets + 2) % 5)
    top = np.stack([sure, sure, np.full(samples, 0.95)], 1)
    return of_probabilities(top, np.stack([early, early, late], 1), 5), targets, (90.0, 90.001, 100.0)
