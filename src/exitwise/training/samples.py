"""What weights a method gave to which losses over a training: a few samples of each epoch, kept on the device.

Recording waits for nothing: what was kept is read when the training has ended.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exitwise.training.step import HalfStep

SAMPLES = 32
"""Samples kept of each epoch."""

ABSENT = -1.0
"""In place of samples that there were not; no loss is that low."""


class WeightSamples:
    """The first samples of the last half step of each epoch that was taken: their loss and weight at each exit.

    Args:
        exits: K.
        device: where the training runs.
    """

    def __init__(self, exits: int, device: torch.device) -> None:
        self.current = torch.full((2, SAMPLES, exits), ABSENT, device=device)
        self.epochs: list[int] = []
        self.past = self.current.new_empty(0, *self.current.shape)

    def add(self, step: HalfStep) -> None:
        """Keep this half step in place of the one before."""
        pair = torch.stack([step.forward.losses.detach().float(), step.weights.float()])[:, :SAMPLES]
        padded = F.pad(pair, (0, 0, 0, SAMPLES - pair.shape[1]), value=ABSENT)
        self.current = torch.where(step.taken, padded, self.current)

    def end_epoch(self, epoch: int) -> None:
        """Put what is kept on record as that of an epoch."""
        self.epochs.append(epoch)
        self.past = torch.cat([self.past, self.current[None]])
        self.current = torch.full_like(self.current, ABSENT)

    def rows(self) -> list[dict[str, Any]]:
        """Per epoch: its number, and ``losses`` and ``weights`` of at most :data:`SAMPLES` samples at K exits."""
        rows = []
        for epoch, (losses, weights) in zip(self.epochs, self.past.cpu(), strict=True):
            kept = (losses != ABSENT).all(dim=1)
            rows.append({"epoch": epoch, "losses": _short(losses[kept]), "weights": _short(weights[kept])})
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"current": self.current, "epochs": self.epochs, "past": self.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = list(state["epochs"])
        self.current, self.past = (state[name].to(self.current.device) for name in ("current", "past"))


def _short(values: Tensor) -> list[list[float]]:
    """To four digits, as many as a figure shows."""
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
