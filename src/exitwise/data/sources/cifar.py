"""CIFAR-10 and CIFAR-100, by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from exitwise.data.sources.base import ArraySource, Request, Sources
from exitwise.errors import DataError


def open_cifar10(request: Request) -> Sources:
    """Return CIFAR-10's training and test images; downloads them if need be."""
    return _open(CIFAR10, "cifar10", request.root)


def open_cifar100(request: Request) -> Sources:
    """Return CIFAR-100's training and test images; downloads them if need be."""
    return _open(CIFAR100, "cifar100", request.root)


def _open(kind: Any, name: str, root: Path) -> Sources:
    parts = []
    for train in (True, False):
        try:
            data = kind(str(root), train=train, download=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"expected {name} in {root} (data_root) or a connection to download it; {reason}"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        parts.append(ArraySource(images, torch.tensor(data.targets), data.classes))
    return Sources(parts[0], None, parts[1])
