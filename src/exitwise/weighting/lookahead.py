"""What an optimizer would make of a gradient, as a pure function on dictionaries of tensors.

State in, state out: parameters, gradients and optimizer state are read and never written. Knows SGD, Adam
and AdamW as torch.optim defines them, and nothing of networks or losses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from exitwise.shapes import Float

Tensors = Mapping[str, Tensor]
GainRule = Callable[[Tensor, Tensor], Tensor | float]
"""From a parameter and its gradient to the gain of a step; see :class:`LookAhead`."""


class LookAhead(NamedTuple):
    """The parameters after one step, and how they depend on the fresh gradient.

    Attributes:
        params: name to updated parameter.
        gain: name to ``-d params / d gradient``, elementwise: a number where it is the same for the whole
            tensor (SGD), else a tensor of the parameter's shape (Adam).
    """

    params: dict[str, Tensor]
    gain: dict[str, Tensor | float]


def sgd_step(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> list[Tensor]:
    """Return one SGD step on several tensors at once: the new parameters.

    ``buffers`` are the momentum buffers, None before the first step (torch.optim then uses gradients undampened).
    """
    directions = list(torch._foreach_add(grads, params, alpha=weight_decay)) if weight_decay else grads
    if momentum:
        velocities = directions
        if buffers is not None:
            decayed = torch._foreach_mul(buffers, momentum)
            velocities = list(torch._foreach_add(decayed, directions, alpha=1.0 - dampening))
        directions = list(torch._foreach_add(directions, velocities, alpha=momentum)) if nesterov else velocities
    return list(torch._foreach_add(params, directions, alpha=-lr))


def sgd_gain(lr: float, momentum: float, dampening: float, nesterov: bool, first: bool) -> float:
    """``-d params / d gradient`` of an SGD step; ``first`` without momentum buffers."""
    if not momentum:
        return lr
    fresh = 1.0 if first else 1.0 - dampening
    return lr * (1.0 + momentum * fresh if nesterov else fresh)


def adam_step(
    param: Float[Tensor, "*param"],
    grad: Float[Tensor, "*param"],
    exp_avg: Float[Tensor, "*param"] | None,
    exp_avg_sq: Float[Tensor, "*param"] | None,
    step: float | Float[Tensor, ""],
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> tuple[Float[Tensor, "*param"], Float[Tensor, "*param"]]:
    """Return one Adam (``decoupled=False``) or AdamW (True) step on one tensor: new parameter and elementwise gain.

    ``exp_avg`` and ``exp_avg_sq`` are None before the first step; ``step`` counts steps taken so far. The
    derivative of sqrt(g²) at g = 0 is taken as 0.
    """
    beta1, beta2 = betas
    if isinstance(step, Tensor):
        step = step.double()  # beta ** step in float32 would differ from torch.optim's in the seventh digit
    if decoupled:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
    mean = (1 - beta1) * grad if exp_avg is None else beta1 * exp_avg + (1 - beta1) * grad
    square = (1 - beta2) * grad**2 if exp_avg_sq is None else beta2 * exp_avg_sq + (1 - beta2) * grad**2
    correction1 = 1 - beta1 ** (step + 1)
    root_correction2 = (1 - beta2 ** (step + 1)) ** 0.5
    positive = square > 0
    root = torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
    denominator = root / root_correction2 + eps
    updated = param - lr / correction1 * mean / denominator
    root_slope = torch.where(positive, (1 - beta2) * grad / root, 0.0)
    denominator_slope = root_slope / root_correction2
    gain = lr / correction1 * ((1 - beta1) / denominator - mean * denominator_slope / denominator**2)
    return updated, gain.detach()


def look_ahead(optimizer: Optimizer, params: Tensors, grads: Mapping[str, Tensor | None]) -> LookAhead:
    """Return what ``optimizer.step()`` would make of ``params`` given ``grads``, without taking the step.

    Differentiable with respect to ``grads``. Parameters that the optimizer does not hold, or whose gradient
    is None, stay as they are (as in torch.optim) and are absent from ``gain``.

    Args:
        optimizer: SGD, Adam or AdamW, at its current learning rates and state. Only read.
        params: name to parameter: the very tensors that the optimizer holds.
        grads: name to gradient.

    Raises:
        ValueError: for an optimizer, or an option of one, that has no look-ahead.
    """
    check_optimizer(optimizer)
    groups = _groups(optimizer)
    updated: dict[str, Tensor] = dict(params)
    gains: dict[str, Tensor | float] = {}
    bunches: dict[tuple[int, bool], list[str]] = {}
    for name, param in params.items():
        group, grad = groups.get(id(param)), grads.get(name)
        if group is None or grad is None:
            continue
        state = optimizer.state.get(param, {})
        if isinstance(optimizer, SGD):
            bunches.setdefault((id(group), state.get("momentum_buffer") is None), []).append(name)
        else:
            updated[name], gains[name] = _adam_rule(optimizer, group, state)(param.detach(), grad)
    for (_, first), names in bunches.items():
        held = [params[name] for name in names]
        group = groups[id(held[0])]
        options = {key: group[key] for key in ("lr", "momentum", "dampening", "nesterov")}
        stepped = sgd_step(
            [param.detach() for param in held],
            [grad for name in names if (grad := grads[name]) is not None],
            None if first else [optimizer.state[param]["momentum_buffer"] for param in held],
            weight_decay=group["weight_decay"],
            **options,
        )
        updated.update(zip(names, stepped, strict=True))
        gains.update(dict.fromkeys(names, sgd_gain(**options, first=first)))
    return LookAhead(updated, gains)


def gain_rules(optimizer: Optimizer, params: Tensors) -> dict[str, GainRule]:
    """Return how each parameter that the optimizer holds would respond to a gradient, at its options and state of now.

    The rules stay as they are when the optimizer moves on.

    Args:
        optimizer, params: as in :func:`look_ahead`.

    Raises:
        ValueError: for an optimizer, or an option of one, that has no look-ahead.
    """
    check_optimizer(optimizer)
    groups = _groups(optimizer)
    return {
        name: _gain_rule(optimizer, groups[id(param)], optimizer.state.get(param, {}))
        for name, param in params.items()
        if id(param) in groups
    }


def _groups(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Parameter group by parameter."""
    return {id(param): group for group in optimizer.param_groups for param in group["params"]}


def _gain_rule(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> GainRule:
    if isinstance(optimizer, SGD):
        options = {key: group[key] for key in ("lr", "momentum", "dampening", "nesterov")}
        gain = sgd_gain(**options, first=state.get("momentum_buffer") is None)
        return lambda param, grad: gain
    kept = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    step = _adam_rule(optimizer, group, kept)
    return lambda param, grad: step(param, grad)[1]


def _adam_rule(
    optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return partial(
        adam_step,
        exp_avg=state.get("exp_avg"),
        exp_avg_sq=state.get("exp_avg_sq"),
        step=state.get("step", 0.0),
        **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")},
        decoupled=isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False),
    )


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError unless :func:`look_ahead` knows this optimizer and its options."""
    own = inspect.unwrap(type(optimizer).step)
    if all(own is not inspect.unwrap(known.step) for known in (SGD, Adam, AdamW)):
        raise ValueError(f"look-ahead knows the steps of SGD, Adam and AdamW; got {type(optimizer).__name__}")
    for option in ("amsgrad", "maximize"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise ValueError(f"look-ahead expects {option}=False; got {type(optimizer).__name__}({option}=True)")
