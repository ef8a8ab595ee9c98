"""A network called with other parameters, and gradients by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from exitwise.kernels.inputs import Inputs
from exitwise.shapes import Float


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return name to parameter, of those that require gradients."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def call_with(model: nn.Module, params: Mapping[str, Tensor], inputs: Inputs) -> Float[Tensor, "batch exits classes"]:
    """Return the logits of ``model`` with some parameters or buffers replaced; its own buffers are left untouched.

    Raises:
        ValueError: if a layer with parameters or buffers stands in the network under two names.
    """
    _check_stands_once(model)
    buffers = {name: params.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    return stacked(functional_call(model, {**params, **buffers}, (inputs,)))


def stacked(outputs: Iterable[Tensor]) -> Float[Tensor, "batch exits classes"]:
    """Return the logits of all exits as one tensor, in single precision at least."""
    logits = torch.stack(list(outputs), dim=1)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def gradients_of(
    loss: Float[Tensor, ""], params: Mapping[str, Tensor], retain_graph: bool = False, create_graph: bool = False
) -> dict[str, Tensor | None]:
    """Return name to gradient of a scalar; None for parameters that it does not depend on."""
    gradients = torch.autograd.grad(
        loss, list(params.values()), retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
    )
    return dict(zip(params, gradients, strict=True))


def _check_stands_once(model: nn.Module) -> None:
    """torch.func.functional_call would leave plain tensors in the place of such a layer's parameters."""
    seen: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if (module._parameters or module._buffers) and seen.setdefault(module, name) != name:
            raise ValueError(
                f"a layer stands in the network as {seen[module]!r} and as {name!r}: let two layers share their "
                f"parameters instead ({name}.weight = {seen[module]}.weight)"
            )
