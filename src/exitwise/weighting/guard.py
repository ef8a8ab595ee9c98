"""Updates that take place only if what they are made of is finite, decided on the device.

Nothing here waits for the device, unless an optimizer cannot skip a step by itself (``fused=True`` can).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from exitwise.shapes import Bool, Float


def all_finite(*tensors: Tensor) -> Bool[Tensor, ""]:
    """Return whether all entries are finite, on their device."""
    return torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all()


def gradient_norm(params: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Return the norm of the gradients that parameters have; it is finite where all of them are."""
    return torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])


@torch.no_grad()
def clip_gradients(params: Iterable[Tensor], norm: Float[Tensor, ""], largest: float) -> None:
    """Scale gradients of a norm down to the largest one, if it is larger."""
    gradients = [param.grad for param in params if param.grad is not None]
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1))


def step_if(ok: Bool[Tensor, ""], optimizer: Optimizer) -> None:
    """Call ``optimizer.step()`` if ``ok``; otherwise parameters and state stay as they are."""
    if all(group.get("fused") for group in optimizer.param_groups):
        # What torch.amp.GradScaler does: the fused kernels look at found_inf on the device.
        params = [param for group in optimizer.param_groups for param in group["params"]]
        fresh = [param for param in params if not optimizer.state.get(param)]
        optimizer.found_inf = torch.logical_not(ok).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
        for param in fresh:  # a momentum buffer that is made in a skipped step is not written to
            state = [value for value in optimizer.state.get(param, {}).values() if isinstance(value, Tensor)]
            restore_unless(ok, state, [torch.zeros_like(value) for value in state])
    elif ok:
        optimizer.step()


def restore_unless(ok: Bool[Tensor, ""], tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Write the copies back into the tensors unless ``ok``."""
    if ok.device.type == "cpu" and ok:
        return
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(torch.where(ok.to(tensor.device), tensor, copy))


class Undo:
    """A copy of all that an optimizer's step will change, for a step that may have to be taken back.

    State that the step makes counts as 0 before, as moments and step counts are.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._copies = [param.detach().clone() for param in self._params]
        self._state = [
            {key: value.clone() for key, value in optimizer.state.get(param, {}).items() if isinstance(value, Tensor)}
            for param in self._params
        ]

    def unless(self, ok: Bool[Tensor, ""]) -> None:
        """Take back what the optimizer has done since, unless ``ok``."""
        tensors, copies = list(self._params), list(self._copies)
        for param, before in zip(self._params, self._state, strict=True):
            for key, value in self._optimizer.state.get(param, {}).items():
                if isinstance(value, Tensor):
                    tensors.append(value)
                    copies.append(before[key] if key in before else torch.zeros_like(value))
        restore_unless(ok, tensors, copies)
