"""Flags of the whole process that a training needs, set for its time and then as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config


@contextmanager
def training_flags(*, tf32: bool = False, compiled: bool = False) -> Iterator[None]:
    """Within this context, products on a GPU are rounded to TF32 or not, and a compiled graph may be used twice.

    Args:
        tf32: whether products and convolutions may be rounded.
        compiled: whether two backward passes go over one compiled graph, whose buffers the first would give away.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    former = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = tf32
    try:
        with torch._functorch.config.patch(donated_buffer=torch._functorch.config.donated_buffer and not compiled):
            yield
    finally:
        for backend, before in zip(backends, former, strict=True):
            backend.allow_tf32 = before
