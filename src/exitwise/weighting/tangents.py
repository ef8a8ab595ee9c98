"""Directional derivatives of a pass's losses, exactly and without second-order autograd, or by its rivals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args
from weakref import WeakSet

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from exitwise.errors import UserError, in_a_line
from exitwise.kernels.channels_last import ChannelsLast
from exitwise.kernels.compiled import is_compiled, uncompiled
from exitwise.kernels.gradients import no_changed_gradients
from exitwise.kernels.tangents import TangentRules
from exitwise.shapes import Float
from exitwise.weighting.calls import call_with, gradients_of
from exitwise.weighting.passes import TrainPass
from exitwise.weighting.replay import check_repeats

GradientMode = Literal["forward", "double-backward", "finite-difference"]


def check_mode(mode: str) -> None:
    """Raise ValueError unless ``mode`` is a :data:`GradientMode` that is possible here."""
    if mode == "double-backward" and ChannelsLast.depth:
        raise ValueError("channels-last operators cannot be differentiated twice (mode 'forward' is exact and cheaper)")
    if mode not in get_args(GradientMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(GradientMode))}; got {mode!r}")


def loss_tangents(
    model: nn.Module,
    params: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
    forward: TrainPass,
    mode: GradientMode = "forward",
) -> Float[Tensor, "batch exits"]:
    """Return the directional derivative of each loss of ``forward`` along ``tangents``.

    Args:
        model: the network in the same mode as in ``forward``.
        params: the parameters at which ``forward`` was made.
        tangents: name to direction; parameters without one stay constant.
        forward: the forward pass to differentiate; its random numbers are drawn again, and its buffers read again.
        mode: ``forward``: one forward-mode pass; ``double-backward``: reverse over reverse;
            ``finite-difference``: ``(losses(params + h * tangents) - losses) / h`` with
            ``h = sqrt(machine epsilon) / ||tangents||``, 3.5e-4 over the norm in float32. It is off by some
            percent in float32: too large a step bends, too small a one drowns in rounding.

    Autocast is left aside here, since tangents are computed in the parameters' precision, and in forward mode
    torch.compile too.

    Raises:
        ValueError: for an unknown mode, finite differences of losses in half precision or of a network whose backward
            pass is another than its function's, or a network that gives other losses when its pass is run again; names
            the module.
    """
    check_mode(mode)
    device = forward.logits.device.type
    if mode == "finite-difference" and torch.is_autocast_enabled(device):
        raise ValueError("finite differences need losses in float32; autocast is on (mode 'forward' takes both)")
    if not tangents:
        return torch.zeros_like(forward.losses)
    with forward.random_state.replayed(), torch.autocast(device, enabled=False):
        if mode == "forward":
            return _forward_mode(model, params, tangents, forward)
        if mode == "double-backward":
            return _reverse_over_reverse(model, params, tangents, forward)
        return _finite_difference(model, params, tangents, forward)


def _losses_at(model: nn.Module, params: Mapping[str, Tensor], forward: TrainPass) -> Tensor:
    logits = call_with(model, {**params, **forward.buffers}, forward.inputs)
    return forward.loss.of(logits, forward.targets, forward.teacher)


def _forward_mode(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    with torch.enable_grad(), forward_ad.dual_level():  # nothing requires a gradient: no graph is made
        constants = {name: param.detach() for name, param in params.items()}
        duals = {name: forward_ad.make_dual(constants[name], tangent) for name, tangent in tangents.items()}
        try:
            # Of the attention kernels, only the plain one has a forward-mode rule.
            with sdpa_kernel(SDPBackend.MATH), uncompiled(), TangentRules(forward.kept):
                losses = _losses_at(model, {**constants, **duals}, forward)
        except NotImplementedError as error:
            raise ValueError(
                f"forward mode met an operator without a rule for it: {str(error).splitlines()[0]} "
                "(mode 'double-backward' or 'finite-difference' may work)"
            ) from error
        primal, tangent = forward_ad.unpack_dual(losses)
        result = torch.zeros_like(losses) if tangent is None else tangent.detach()
    _check_repeats(model, constants, forward, primal)
    return result


def _reverse_over_reverse(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    at = {name: params[name].detach().requires_grad_() for name in tangents}
    losses = _losses_at(model, {**params, **at}, forward)
    _check_repeats(model, params, forward, losses)
    cotangent = torch.ones_like(losses, requires_grad=True)
    with differentiated_twice():
        backward = gradients_of((losses * cotangent).sum(), at, create_graph=True)
        products = [(gradient * tangents[name]).sum() for name, gradient in backward.items() if gradient is not None]
        return torch.autograd.grad(torch.stack(products).sum(), cotangent)[0]


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Raise UserError where an operator has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("derivative for"):
            raise
        raise UserError(
            f"expected operators that can be differentiated twice; {in_a_line(error)} (mode 'forward' is exact and "
            "cheaper)"
        ) from error


def _finite_difference(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    precision = next(iter(tangents.values())).dtype
    if precision not in (torch.float32, torch.float64):
        raise ValueError(f"finite differences need float32 or float64; got {precision} (mode 'forward' is exact)")
    root: float = torch.finfo(precision).eps ** 0.5
    norm = torch.nn.utils.get_total_norm(tangents.values())
    step = root / norm.clamp_min(torch.finfo(precision).tiny / root)
    with torch.no_grad(), no_changed_gradients():
        _check_repeats(model, params, forward)
        steps = torch._foreach_mul(list(tangents.values()), step)
        moved = dict(zip(tangents, torch._foreach_add([params[name] for name in tangents], steps), strict=True))
        return (_losses_at(model, {**params, **moved}, forward) - forward.losses.detach()) * (norm / root)


_REPEATED: WeakSet[nn.Module] = WeakSet()
"""Networks whose pass was run again, and gave the same."""


def _check_repeats(
    model: nn.Module, params: Mapping[str, Tensor], forward: TrainPass, again: Tensor | None = None
) -> None:
    """Raise ValueError unless the pass gives the same losses when it is run again.

    Once for each network, as that costs a pass; and for ``again``, the losses of a repetition that was made anyway,
    where looking at them means no waiting for a device.
    """
    if forward.autocast or any(map(is_compiled, model.modules())):
        return

    def run() -> Tensor:
        with forward.random_state.replayed(), torch.no_grad():
            return _losses_at(model, params, forward)

    if again is not None and again.device.type == "cpu":
        check_repeats(forward.losses, again, model, run)
    if model not in _REPEATED:
        check_repeats(forward.losses, run(), model, run)
        _REPEATED.add(model)
