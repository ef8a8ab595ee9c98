"""trackio: a local, free dashboard (``trackio show --project exitwise``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from exitwise.tracking import PROJECT


class Trackio:
    """A run by the name of its folder, in the project ``exitwise``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        trackio.init(project=PROJECT, name=folder.resolve().name, config=dict(settings), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        trackio.log(dict(values), step=step)

    def finish(self) -> None:
        trackio.finish()
