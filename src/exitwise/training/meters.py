"""Sums over an epoch's steps, kept on the device, so that nothing waits for it."""

from __future__ import annotations

from typing import Any

import torch

from exitwise.training.step import HalfStep

MOST_SKIPPED = 10
"""So many half steps in a row that are not finite end a run."""


class Meters:
    """Sums over an epoch, kept on the device: losses, meta losses, correct answers and losses per exit, norms of
    gradients; skipped steps apart."""

    def __init__(self, exits: int, device: torch.device) -> None:
        self.sums = torch.zeros(7 + 2 * exits, dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, step: HalfStep) -> None:
        """Count one half step."""
        one, none = torch.ones_like(step.loss), torch.zeros_like(step.loss)
        meta = (none, none) if step.meta_loss is None else (one, step.meta_loss)
        shares = torch.stack([one, step.loss, step.deviation, *meta, step.images])
        self.sums += torch.where(step.taken, torch.cat([shares, step.correct, step.gradient[None], step.losses]), 0)
        self.skipped += ~step.taken

    def means(self) -> dict[str, float]:
        """Loss, meta loss if any, mean distance of the weights from 1, accuracy per exit on the training images, norm
        of the gradient, loss per exit without weights, and the number of skipped steps if any."""
        steps, loss, deviation, meta_steps, meta_loss, images, *by_exit = self.sums.tolist()
        exits = len(by_exit) // 2
        correct, gradient, losses = by_exit[:exits], by_exit[exits], by_exit[exits + 1 :]
        skipped = int(self.skipped)
        return {
            "loss": loss / max(steps, 1),
            **({"meta_loss": meta_loss / meta_steps} if meta_steps else {}),
            "weight_deviation": deviation / max(steps, 1),
            **{f"train_accuracy_{k}": value / max(images, 1) for k, value in enumerate(correct, start=1)},
            "gradient_norm": gradient / max(steps, 1),
            **{f"loss_{k}": value / max(steps, 1) for k, value in enumerate(losses, start=1)},
            **({"skipped_steps": skipped} if skipped else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sums = state["sums"]
        self.sums[: len(sums)] = sums.to(self.sums)  # former checkpoints have fewer
        self.skipped.copy_(state["skipped"])


class SkippedRow:
    """Counts skipped steps in a row, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest = torch.zeros_like(self.row)

    def add(self, step: HalfStep) -> None:
        """Count one half step."""
        self.row = (self.row + 1) * ~step.taken
        self.longest = torch.maximum(self.longest, self.row)

    @property
    def at_end(self) -> bool:
        """Return whether :data:`MOST_SKIPPED` steps were skipped in a row. Waits for the device."""
        return int(self.longest) >= MOST_SKIPPED

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "longest": self.longest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row, self.longest = (state[key].to(self.row.device) for key in ("row", "longest"))
