"""TensorBoard: event files that its server shows (``tensorboard --logdir runs``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboard  # noqa: F401 -- torch's own error does not name it
from torch.utils.tensorboard import SummaryWriter

from exitwise.shown import text_of


class TensorBoard:
    """Writes events into the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        rows = "\n".join(f"| {name} | {text_of(value)} |" for name, value in settings.items())
        self.writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()
