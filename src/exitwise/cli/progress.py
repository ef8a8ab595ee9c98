"""Shows training as it goes: a bar in a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exitwise.training.trainer import Meters

REFRESH_SECONDS = 0.5


class RichReporter:
    """A reporter for :class:`~exitwise.training.trainer.Trainer` that draws with rich."""

    def __init__(self, console: Console, label: str = "training") -> None:
        self.console = console
        columns = (
            TextColumn(label),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("", total=None, note="")
        self.shown = 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def on_step(self, iteration: int, total: int, meters: Meters) -> None:
        now = time.monotonic()
        if not self.console.is_terminal or (now - self.shown < REFRESH_SECONDS and iteration < total):
            return
        self.shown = now
        self.progress.update(self.task, completed=iteration, total=total, note=describe(meters.means(), "train"))

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        row = history[-1]
        self.console.print(f"epoch {row['epoch']:>3}  {describe(row, 'calibration')}", highlight=False, soft_wrap=True)


def describe(row: dict[str, float], split: str) -> str:
    """Loss, meta loss if any, and accuracy per exit on a split."""
    accuracies = [value for key, value in row.items() if key.startswith(f"{split}_accuracy_")]
    meta = f"  meta {row['meta_loss']:.3f}" if "meta_loss" in row else ""
    return f"loss {row['loss']:.3f}{meta}  {split} accuracy " + " ".join(f"{100 * a:.1f}" for a in accuracies)
