"""The functions that torch.onnx translates operators to: listed once in a process, and not anew at each export."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any


def list_once() -> None:
    """Let torch.onnx keep its list of functions, for which it parses the source of each: a third of a small export.

    The list is the same each time. A torch that has it elsewhere is left as it is.
    """
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter import _registration

        source: Any = _registration.onnxscript_apis
        if not hasattr(source.get_torchlib_ops, "cache_info"):
            source.get_torchlib_ops = cache(source.get_torchlib_ops)
