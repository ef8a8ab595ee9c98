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
        several = "logits" in output or len(output) != 1
        return output.get("logits", output) if several else next(iter(output.values()))
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


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network that a wrapper for several devices, or of torch.compile, holds.

    Raises:
        UserError: for a network that no exits can be put on, by what it is.
    """
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif isinstance(held := getattr(network, "_orig_mod", None), nn.Module):
            network = held
        else:
            break
    kind = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"expected a network as it was written; {kind} is compiled by torch.jit (give the one before)")
    if next((module for module in network.modules() if module._compiled_call_impl is not None), None) is not None:
        inside = next(name for name, module in network.named_modules() if module._compiled_call_impl is not None)
        raise UserError(
            f"expected a network as it was written; {inside or kind} is compiled in place (compile the network with "
            "exits instead)"
        )
    if (model := getattr(network, "base_model", None)) is not None and hasattr(network, "peft_config"):
        raise UserError(
            f"expected a network of its own; {kind} holds adapters beside {type(model).__name__} "
            "(network.merge_and_unload() gives one)"
        )
    if any(kind.__module__.startswith(("lightning.", "pytorch_lightning.")) for kind in type(network).__mro__):
        inside = next((name for name, _ in network.named_children()), "model")
        raise UserError(f"expected the network in a Lightning module; got {kind} itself (give its .{inside})")
    return network


def check_whole_numbers(network: nn.Module) -> None:
    """Raise UserError for a quantised network, whose products are not counted and whose layers are not trained."""
    for name, module in network.named_modules():
        if "quantized" in type(module).__module__:
            raise UserError(
                f"expected a network of floating-point layers; {name or type(network).__name__} is quantised (add "
                "exits first, and quantise what is exported)"
            )


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
