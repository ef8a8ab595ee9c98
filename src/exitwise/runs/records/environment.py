"""environment.json: versions and machine of a training, for the record."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torchvision

from exitwise.storage.record import Record
from exitwise.version import __version__


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "command": list(command),
        "exitwise": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


ENVIRONMENT: Record[dict[str, Any]] = Record(
    "environment.json", "exitwise/environment", dict, lambda content, version: content, expected="versions"
)
