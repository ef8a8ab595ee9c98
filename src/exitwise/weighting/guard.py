"""Updates that take place only if what they are made of is finite, decided on the device.

Nothing here waits for the device, unless an optimizer cannot skip a step by itself (``fused=True`` can).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def all_finite(*tensors: Tensor) -> Tensor:
    """Whether all entries are finite: a bool scalar on their device."""
    return torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all()


def finite_gradients(params: Iterable[Tensor]) -> Tensor:
    """Whether the gradients that parameters have are finite, by their norm: a bool scalar."""
    return torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None]).isfinite()


def step_if(ok: Tensor, optimizer: Optimizer) -> None:
    """``optimizer.step()`` if ``ok``, a bool scalar; otherwise parameters and state stay as they are."""
    if all(group.get("fused") for group in optimizer.param_groups):
        # What torch.amp.GradScaler does: the fused kernels look at found_inf on the device.
        optimizer.found_inf = torch.logical_not(ok).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    elif ok:
        optimizer.step()


def restore_unless(ok: Tensor, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Write the copies back into the tensors unless ``ok``."""
    if ok.device.type == "cpu" and ok:
        return
    for tensor, copy in zip(tensors, copies, strict=True):
        torch.where(ok, tensor, copy, out=tensor)
