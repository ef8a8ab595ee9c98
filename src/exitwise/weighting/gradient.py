"""The gradient of the meta loss with respect to the sample weights, exactly and without second-order autograd.

A network is any module that maps inputs to a sequence of logits, one per exit. Nothing here writes to its
parameters, buffers or optimizer; what to do with the gradient is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.budgets import check_proportions
from exitwise.kernels.gradients import unchanged_gradients
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.shapes import Float, Int
from exitwise.weighting.allocation import Objective, allocate, meta_loss
from exitwise.weighting.calls import call_with, gradients_of, trainable
from exitwise.weighting.lookahead import look_ahead
from exitwise.weighting.passes import Batch, TrainPass, exit_confidences, with_teacher
from exitwise.weighting.tangents import GradientMode, check_mode, differentiated_twice, loss_tangents


class MetaGradient(NamedTuple):
    """Result of :func:`meta_gradient`.

    Attributes:
        weights: d meta loss / d weights.
        loss: the meta loss, detached.
        allocation: exit (0-based) that each meta sample was allocated to.
    """

    weights: Float[Tensor, "batch exits"]
    loss: Float[Tensor, ""]
    allocation: Int[Tensor, "meta"]


def meta_gradient(
    model: nn.Module,
    optimizer: Optimizer,
    forward: TrainPass,
    weights: Float[Tensor, "batch exits"],
    meta: Batch,
    proportions: Sequence[float],
    *,
    objective: Objective = "share-weighted",
    mode: GradientMode = "forward",
) -> MetaGradient:
    """d meta loss / d weights, through the look-ahead step that the weights cause.

    The look-ahead parameters are what ``optimizer`` would make of the gradient of the weighted training
    loss; the meta loss is the loss of the meta half batch there, each sample at the exit that
    ``proportions`` allocate it to (docs/method.md, eqs. 3 to 7). Neither the network's parameters and
    buffers nor the optimizer are changed, and the graph of ``forward`` stays usable for the real step.

    Args:
        model: the network, in the mode (train or eval) that it trains in.
        optimizer: SGD, Adam or AdamW over the network's parameters.
        forward: the forward pass over the train half, at the current parameters.
        weights: sample weights of that half; only their values are used.
        meta: inputs and targets of the meta half, and a teacher's logits if ``forward`` has them.
        proportions: share of samples leaving at each exit.
        objective: see :func:`~exitwise.weighting.allocation.meta_loss`.
        mode: ``forward`` needs one forward-mode pass over the train half; ``double-backward`` differentiates
            through the look-ahead gradient, at several times the cost, and serves as the oracle;
            ``finite-difference`` needs one plain forward pass and is accurate to some percent (see
            :func:`~exitwise.weighting.tangents.loss_tangents`).

    Returns:
        The gradient, to be handed to ``weights.backward(gradient)``, the meta loss and the allocation.

    Raises:
        ValueError: for an unknown mode, an optimizer without look-ahead, an operator without forward mode,
            wrong proportions, weights of another shape than the losses, or a model without parameters to train.
    """
    check_mode(mode)
    params = trainable(model)
    if not params:
        raise ValueError("expected parameters that require gradients; the model has none")
    if weights.shape != forward.losses.shape:
        raise ValueError(f"expected weights of shape {tuple(forward.losses.shape)}; got {tuple(weights.shape)}")
    proportions = check_proportions(proportions, forward.losses.shape[1])
    weights = weights.detach()
    if mode == "double-backward":
        if forward.ranks.size > 1:
            raise ValueError("double backward is for one process (mode 'forward' is exact and cheaper)")
        training_loss = forward.training_loss(weights.requires_grad_())
        with differentiated_twice():
            gradients = gradients_of(training_loss, params, retain_graph=True, create_graph=True)
            ahead = look_ahead(optimizer, params, gradients)
            loss, allocation = _loss_at(model, ahead.params, forward, meta, proportions, objective)
            (gradient,) = torch.autograd.grad(loss, weights)
        return MetaGradient(gradient, loss.detach(), allocation)

    training_loss = forward.training_loss(weights) * forward.share
    ahead = look_ahead(optimizer, params, total_gradients(training_loss, params, forward.ranks, retain_graph=True))
    at = {name: param.detach().requires_grad_() for name, param in ahead.params.items()}
    loss, allocation = _loss_at(model, at, forward, meta, proportions, objective)
    direction = scale_by_gain(total_gradients(loss, at, forward.ranks), ahead.gain)
    return MetaGradient(weight_gradient(model, params, direction, forward, mode), loss.detach(), allocation)


def allocated_loss(
    losses: Float[Tensor, "batch exits"],
    confidences: Float[Tensor, "batch exits"],
    proportions: Sequence[float],
    objective: Objective,
    ranks: Ranks = ALONE,
    share: Float[Tensor, ""] | float = 1.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, "batch"]]:
    """Return what a process's share of a half batch adds to the meta loss, and the exit of each of its samples.

    Args:
        losses, confidences: of the share.
        proportions, objective: as for :func:`meta_gradient`.
        ranks: the processes. Where they allocate together, the loss returned is that of all shares, of which this one's
            alone is differentiable.
        share: which part of the half batch it is.
    """
    if ranks.scope.size == 1:
        allocation = allocate(confidences, proportions)
        return meta_loss(losses, allocation, objective) * share, allocation
    everyone, own = ranks.scope.gather(torch.cat([losses, confidences], dim=1))
    losses, confidences = everyone.chunk(2, dim=1)
    allocation = allocate(confidences, proportions)
    return meta_loss(losses, allocation, objective), allocation[own]


def total_gradients(
    loss: Float[Tensor, ""], params: Mapping[str, Tensor], ranks: Ranks, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """:func:`gradients_of` a loss that is the sum of what the processes' shares add to it."""
    gradients = gradients_of(loss, params, retain_graph=retain_graph)
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    return {**gradients, **dict(zip(present, ranks.sum_all(list(present.values())), strict=True))}


def weight_gradient(
    model: nn.Module,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    forward: TrainPass,
    mode: GradientMode,
) -> Float[Tensor, "batch exits"]:
    """Return d meta loss / d weights, given the meta loss's gradient times the look-ahead's gain as ``direction``.

    As if the share were the half batch; the gradient over all shares is ``forward.share`` times this.
    """
    tangents = loss_tangents(model, params, direction, forward, mode)
    if forward.counts is not None:
        tangents = tangents * forward.counts
    return -tangents / len(tangents)


def scale_by_gain(gradients: Mapping[str, Tensor | None], gain: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Return the direction ``D * v`` for forward mode: ``v`` times the look-ahead's gain on a fresh gradient."""
    return {
        name: gain[name] * gradient for name, gradient in gradients.items() if gradient is not None and name in gain
    }


def _loss_at(
    model: nn.Module,
    params: Mapping[str, Tensor],
    forward: TrainPass,
    meta: Batch,
    proportions: Sequence[float],
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    inputs, targets, teacher = with_teacher(meta)
    with unchanged_gradients():  # how gradients flow in training is no part of what is to be achieved
        logits = call_with(model, params, inputs)
    losses = forward.loss.of(logits, targets, teacher)
    confidences, share = exit_confidences(logits), forward.ranks.share(losses)
    return allocated_loss(losses, confidences, proportions, objective, forward.ranks, share)
