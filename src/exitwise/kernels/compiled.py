"""torch.compile switched on and off: which modules are compiled, and a context in which they run as written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile or Module.compile has been applied to the module as a whole."""
    return model._compiled_call_impl is not None or hasattr(model, "_orig_mod")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within this context, compiled modules run as they were written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
