"""What is asked of a backbone besides its graph: its logits, its layers, and that it stays unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs


class CannotSplitError(UserError):
    """A network cannot be run in parts."""


def cannot_split(network: nn.Module, reason: str) -> CannotSplitError:
    """Return the error for a network that cannot be run in parts, which offers the alternative."""
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return CannotSplitError(
        f"{type(network).__name__} cannot be run in parts: {first} (skip=False evaluates all exits together, without "
        "skipping)"
    )


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Whatever happens within this context, modules' attributes and buffers' values are as before afterwards."""
    modules = list(network.modules())
    attributes = [dict(module.__dict__) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    values = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, before, held in zip(modules, attributes, buffers, strict=True):
                module.__dict__.clear()
                module.__dict__.update(before)
                module._buffers.clear()
                module._buffers.update(held)
            for buffer, value in values:
                buffer.copy_(value)


def logits_of(output: Any) -> Any:
    """Return the logits in what a classifier returned: an object or mapping with ``logits``, or one thing alone."""
    if isinstance(output, (Tensor, fx.Proxy)):
        return output
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if isinstance(output, (tuple, list)) and len(output) == 1:
        return output[0]
    return getattr(output, "logits", output)


def last_tensor(result: Any) -> Any:
    """Return the last tensor in what a module returned, where that is a sequence, such as one of maps at several
    scales, or of a tensor and its sizes; else what it returned."""
    if not isinstance(result, (tuple, list)):
        return result
    found = [part for part in map(last_tensor, result) if isinstance(part, (Tensor, fx.Proxy))]
    return found[-1] if found else None


def answer(network: nn.Module, inputs: Inputs) -> Any:
    """Return the logits that a network gives, with its inputs by position or by name."""
    return logits_of(network(**inputs) if isinstance(inputs, dict) else network(inputs))


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is one of torch's or timm's or torchvision's layers, containers aside."""
    home = type(module).__module__
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    if home.startswith("torch.nn."):
        return True
    return home.startswith(("timm.layers.", "torchvision.ops.")) and not _has_parts(module)


def _has_parts(module: nn.Module) -> bool:
    """Return whether a layer is itself built of several layers that a network could be cut between."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules()) > 8
