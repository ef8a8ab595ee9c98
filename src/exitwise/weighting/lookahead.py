"""What an optimizer would make of a gradient, as a pure function on dictionaries of tensors.

State in, state out: parameters, gradients and optimizer state are read and never written. Knows SGD, Adam
and AdamW as torch.optim defines them, and nothing of networks or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

Tensors = Mapping[str, Tensor]
StepRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | float]]
"""From a parameter and its gradient to the new parameter and the gain on the gradient."""


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
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[Tensor, float]:
    """One SGD step on one tensor: the new parameter and the gain on the fresh gradient.

    ``buffer`` is the momentum buffer, None before the first step (torch.optim then uses the gradient undampened).
    """
    direction = grad + weight_decay * param
    gain = 1.0
    if momentum:
        fresh = 1.0 if buffer is None else 1.0 - dampening
        velocity = direction if buffer is None else momentum * buffer + fresh * direction
        direction = direction + momentum * velocity if nesterov else velocity
        gain = 1.0 + momentum * fresh if nesterov else fresh
    return param - lr * direction, lr * gain


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    step: float | Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """One Adam (``decoupled=False``) or AdamW (True) step on one tensor: new parameter and elementwise gain.

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
    """What ``optimizer.step()`` would make of ``params`` given ``grads``, without taking the step.

    Differentiable with respect to ``grads``. Parameters that the optimizer does not hold, or whose gradient
    is None, stay as they are (as in torch.optim) and are absent from ``gain``.

    Args:
        optimizer: SGD, Adam or AdamW, at its current learning rates and state. Only read.
        params: name to parameter: the very tensors that the optimizer holds.
        grads: name to gradient.

    Raises:
        ValueError: for an optimizer, or an option of one, that has no look-ahead.
    """
    return take_steps(step_rules(optimizer, params), params, grads)


def step_rules(optimizer: Optimizer, params: Tensors, copy: bool = False) -> dict[str, StepRule]:
    """How the optimizer would step each parameter that it holds, at its current options and state.

    Args:
        optimizer, params: as in :func:`look_ahead`.
        copy: whether the rules keep the state as it is now, even when the optimizer moves on.

    Raises:
        ValueError: for an optimizer, or an option of one, that has no look-ahead.
    """
    check_optimizer(optimizer)
    groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    rules: dict[str, StepRule] = {}
    for name, param in params.items():
        if id(param) in groups:
            state = optimizer.state.get(param, {})
            rules[name] = _rule(optimizer, groups[id(param)], copy_state(state) if copy else state)
    return rules


def take_steps(rules: Mapping[str, StepRule], params: Tensors, grads: Mapping[str, Tensor | None]) -> LookAhead:
    """Apply step rules to parameters and gradients; see :func:`look_ahead`."""
    updated: dict[str, Tensor] = {}
    gains: dict[str, Tensor | float] = {}
    for name, param in params.items():
        grad = grads.get(name)
        if grad is None or name not in rules:
            updated[name] = param
        else:
            updated[name], gains[name] = rules[name](param.detach(), grad)
    return LookAhead(updated, gains)


def copy_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of one parameter's optimizer state."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def _rule(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> StepRule:
    if isinstance(optimizer, SGD):
        options = {key: group[key] for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov")}
        return partial(sgd_step, buffer=state.get("momentum_buffer"), **options)
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
    if not isinstance(optimizer, (SGD, Adam, AdamW)):
        raise ValueError(f"look-ahead knows SGD, Adam and AdamW; got {type(optimizer).__name__}")
    for option in ("amsgrad", "maximize"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise ValueError(f"look-ahead expects {option}=False; got {type(optimizer).__name__}({option}=True)")
