import math
from types import SimpleNamespace

import torch

from exitwise.training.samples import SAMPLES, WeightSamples


def step(size, level, taken=True):
    losses = level + torch.arange(size * 2.0).view(size, 2)
    return SimpleNamespace(forward=SimpleNamespace(losses=losses), weights=losses / 10, taken=torch.tensor(taken))


def test_the_last_half_step_that_was_taken_is_kept():
    samples = WeightSamples(2, torch.device("cpu"))
    samples.add(step(3, 0.0))
    samples.add(step(2, 5.0))
    samples.add(step(3, math.nan, taken=False))
    samples.end_epoch(1)
    samples.add(step(SAMPLES + 7, 1.0))
    samples.end_epoch(2)
    samples.end_epoch(3)
    first, second, third = samples.rows()
    assert first == {"epoch": 1, "losses": [[5.0, 6.0], [7.0, 8.0]], "weights": [[0.5, 0.6], [0.7, 0.8]]}
    assert second["losses"] == step(SAMPLES, 1.0).forward.losses.tolist()
    assert third == {"epoch": 3, "losses": [], "weights": []}
