"""Weights & Biases; offline with ``WANDB_MODE=offline``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from exitwise.tracking import PROJECT


class WandB:
    """A run by the name of its folder, in the project ``exitwise``; the same one for the same folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        place = folder.resolve()
        identity = hashlib.sha256(str(place).encode(errors="surrogateescape")).hexdigest()[:16]
        self.run = wandb.init(
            project=PROJECT, name=place.name, id=identity, resume="allow", dir=str(place), config=dict(settings)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()
