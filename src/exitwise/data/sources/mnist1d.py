"""Signals in ten classes, made by the recipe of MNIST-1D (Greydanus and Kobak, ICML 2024), with shapes of our own.

A signal is the shape of its class among zeros, scaled, turned round the end of the line, with noise and on a slope. It
is carried as an image of one row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exitwise.data.sources.base import ArraySource, Request, Sources

LENGTH = 40
TRAIN, TEST = 10_000, 4000
SEEDS = {"train": 1, "test": 2}
PADDING, SCALE, SHIFT, SLOPE = (36, 60), 0.4, 48, 0.75
"""Zeros beside a shape; the most it is scaled by beyond 1, either way; places it is moved by at most; the steepest
slope, in rise over half the signal."""

SMOOTH_NOISE, NOISE, SMOOTHING = 0.25, 0.02, 2.0
"""Standard deviations of noise that is smoothed over some places and of noise that is not; how many places."""

RANGE = 2.0
"""Values from -RANGE to RANGE are kept, in 256 steps."""

HEIGHT = 8
SHAPES = (
    (0, 3, 5, 6, 7, 7, 7, 7, 6, 5, 3, 0),
    (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0),
    (0, 4, 8, 4, 0, 0, 0, 0, 4, 8, 4, 0),
    (0, 6, 1, 5, 2, 4, 4, 2, 5, 1, 6, 0),
    (0, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0),
    (8, 6, 4, 2, 0, 0, 0, 2, 4, 6, 8, 8),
    (0, 2, 4, 6, 8, 8, 6, 2, 1, 3, 3, 1),
    (0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0),
    (4, 7, 8, 7, 4, 1, 0, 1, 4, 7, 8, 7),
    (1, 3, 3, 1, 2, 6, 8, 8, 6, 4, 2, 0),
)
"""A line of heights per class, and the height that becomes 1."""


def open_mnist1d(request: Request) -> Sources:
    """Return signals to train on and others to test on, uint8 (1, 1, 40) each."""
    return Sources(_made(TRAIN, SEEDS["train"]), None, _made(TEST, SEEDS["test"]))


def _made(count: int, seed: int) -> ArraySource:
    targets = np.arange(count) % len(SHAPES)
    steps = np.rint((signals(targets, seed) / RANGE + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return ArraySource(torch.from_numpy(steps)[:, None, None], torch.from_numpy(targets), list(map(str, range(10))))


def signals(targets: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a signal of each class that is asked for, (N, 40); the same for a seed wherever it is made."""
    random = np.random.RandomState(seed)  # whose numbers NumPy has promised never to change
    return np.stack([_signal(np.array(SHAPES[target], dtype=float), random) for target in targets])


def _signal(shape: NDArray[np.float64], random: np.random.RandomState) -> NDArray[np.float64]:
    line = np.zeros(len(shape) + random.randint(PADDING[0], PADDING[1] + 1))
    line[: len(shape)] = (shape - shape.mean()) / HEIGHT
    line *= 1 + SCALE * random.uniform(-1, 1)
    line = np.roll(line, random.randint(SHIFT + 1))
    line += SMOOTH_NOISE * _smoothed(random.standard_normal(len(line))) + NOISE * random.standard_normal(len(line))
    line += SLOPE * random.uniform(-1, 1) * np.linspace(-1, 1, len(line))
    return np.interp(np.linspace(0, len(line) - 1, LENGTH), np.arange(len(line)), line)


def _smoothed(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return noise whose neighbours are alike, of standard deviation 1."""
    places = np.arange(-4, 5) / SMOOTHING
    kernel = np.exp(-(places**2) / 2)
    ring = np.concatenate([noise[-4:], noise, noise[:4]])
    return np.convolve(ring, kernel / np.sqrt((kernel**2).sum()), "valid")
