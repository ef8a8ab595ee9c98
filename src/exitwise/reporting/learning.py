"""How accurate exits became while they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

MOST_EPOCHS = 50
"""Epochs that are shown at most, the first and the last among them."""


class Epoch(NamedTuple):
    """Accuracy of each exit (K) on training images as they were seen, and on the calibration images after the epoch."""

    epoch: int
    train: list[float]
    calibration: list[float]


def learning(rows: Sequence[Mapping[str, float]], exits: int) -> list[Epoch]:
    """Return some epochs of a run's metrics; none where these are not of so many exits.

    Args:
        rows: one per epoch, as in metrics.csv.
        exits: K.
    """
    numbers = range(1, exits + 1)
    wanted = ["epoch", *(f"{part}_accuracy_{k}" for part in ("train", "calibration") for k in numbers)]
    whole = [row for row in rows if all(name in row for name in wanted)]
    if not whole:
        return []
    places = np.unique(np.linspace(0, len(whole) - 1, MOST_EPOCHS).round().astype(int)).tolist()
    return [
        Epoch(
            int(whole[place]["epoch"]),
            [round(whole[place][f"train_accuracy_{k}"], 4) for k in numbers],
            [round(whole[place][f"calibration_accuracy_{k}"], 4) for k in numbers],
        )
        for place in places
    ]
