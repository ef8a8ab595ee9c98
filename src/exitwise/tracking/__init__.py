"""Trainings followed by the tools that people have for it, an adapter each. A tool that fails ends no training."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from exitwise.catalogue.extras import needing_extras
from exitwise.catalogue.lookup import find
from exitwise.catalogue.trackers import TRACKERS
from exitwise.errors import ExitwiseWarning

STEP_SECONDS = 10.0
"""At least so long passes between the figures of two steps; those of epochs all go out."""

PROJECT = "exitwise"


class Tracker(Protocol):
    """One run in a tool: made with the run's folder and settings, it goes on with what the tool has of that folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures by name, after so many loaded batches."""

    def finish(self) -> None:
        """Nothing more will come."""


class Tracking:
    """All trackers of a training, which end with a ``with`` block around it.

    Args:
        names: of :data:`~exitwise.catalogue.trackers.TRACKERS`.

    Raises:
        UserError: for an unknown name, or one whose library is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.made: dict[str, Callable[..., Tracker]] = {}
        for name in names:
            with needing_extras(f"track {name}"):
                self.made[name] = find(TRACKERS, name, "tracker").load()
        self.trackers: dict[str, Tracker] = {}
        self.sent = self.began = time.monotonic()

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a run in each tool, for a run folder with these settings."""
        for name, make in self.made.items():
            if (tracker := self._try(name, make, folder, settings)) is not None:
                self.trackers[name] = tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.finish)

    def step(self, step: int, values: Callable[[], Mapping[str, float]]) -> None:
        """Pass on figures of a step, if it is time to."""
        if self.trackers and time.monotonic() - self.sent >= STEP_SECONDS:
            self._log(step, {f"step/{name}": value for name, value in values().items()})

    def epoch(self, row: Mapping[str, float]) -> None:
        """Pass on a row of metrics, with the seconds since the start."""
        figures = {name: value for name, value in row.items() if name not in ("epoch", "iteration")}
        figures["seconds"] = time.monotonic() - self.began
        self._log(int(row["iteration"]), {f"epoch/{name}": value for name, value in figures.items()})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self.sent = time.monotonic()
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.log, step, finite)

    def _try(self, name: str, call: Callable[..., Any], *given: object) -> Any:
        try:
            return call(*given)
        except Exception as error:  # whatever a tool raises where it cannot be reached
            self.trackers.pop(name, None)
            said = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"{name} fails, and is told nothing more: {said[0]}", ExitwiseWarning, stacklevel=4)
            return None
