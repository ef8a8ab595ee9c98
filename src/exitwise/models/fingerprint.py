"""Which weights a network has, in a few characters: equal ones on any device, compiled or not, have equal ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_COMPILED = "_orig_mod."
"""What torch.compile puts before the names within a module that it wraps."""


def fingerprint(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a state dict's tensors and their names."""
    digest = hashlib.sha256()
    named = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    for name, value in sorted(named.items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
