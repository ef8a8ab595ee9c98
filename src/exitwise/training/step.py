"""One training step: a loaded batch in halves, one optimizer update on each (docs/method.md, "One step")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.kernels.inputs import Inputs, parted
from exitwise.methods.base import Method, Weighting
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.weighting.guard import all_finite, clip_gradients, gradient_norm, restore_unless, step_if
from exitwise.weighting.losses import Loss, classes_of
from exitwise.weighting.passes import Batch, TrainPass, train_pass, with_teacher


class HalfStep(NamedTuple):
    """The result of one update.

    Attributes:
        forward: the forward pass over this process's share of the train half; its graph is spent, and nothing kept.
        weights: the sample weights used there, (B, K).
        loss: the weighted training loss, a detached scalar; like all that follows, over all processes' shares.
        meta_loss: a detached scalar, or None.
        deviation: mean distance of the weights from 1.
        correct: right answers of each exit on the train half, (K); of mixed images, those that they show most of.
        losses: mean loss of each exit there, without weights, (K).
        gradient: norm of its gradient, before any clipping, a scalar.
        images: how many images that half has.
        taken: False where a loss, the meta-gradient or a gradient was not finite, so that nothing was changed; a bool
            scalar on the device.
    """

    forward: TrainPass
    weights: Tensor
    loss: Tensor
    meta_loss: Tensor | None
    deviation: Tensor
    correct: Tensor
    losses: Tensor
    gradient: Tensor
    images: Tensor
    taken: Tensor


def half_batches(inputs: Inputs, targets: Tensor, teacher: Tensor | None = None) -> Iterator[tuple[Batch, Batch]]:
    """(train half, meta half), then the other way round; of an odd batch the first half is one larger.

    ``teacher`` are a teacher's logits for the samples, to be halved with them.

    Raises:
        ValueError: if there are fewer than two samples.
    """
    if len(targets) < 2:
        raise ValueError(f"a batch is trained on in halves and needs at least 2 samples; got {len(targets)}")
    parts = (inputs, targets) if teacher is None else (inputs, targets, teacher)
    first, second = cast("tuple[Batch, Batch]", tuple(zip(*(parted(part, 2) for part in parts), strict=True)))
    yield first, second
    yield second, first


def half_step(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    train: Batch,
    meta: Batch,
    index: int,
    loss: Loss | None = None,
    ranks: Ranks = ALONE,
    clip: float | None = None,
) -> HalfStep:
    """Return one update of ``model`` on the train half, weighted by ``method``; see :class:`Method`.

    Gradients of a norm over ``clip`` are scaled down to it, which no look-ahead knows of.
    ``train`` and ``meta`` are this process's shares of the halves that were dealt to ``ranks``. Where something is not
    finite in one of them, the network's parameters and buffers and both optimizers are left as they were in all.
    """
    keep = method.takes_tangents(index)
    inputs, targets, teacher = with_teacher(train)
    forward = train_pass(model, inputs, targets, loss, keep=keep, ranks=ranks, teacher=teacher)
    copies = list(forward.buffers.values())
    weighting = method.weigh(model, optimizer, forward, meta, index)
    forward = replace(forward, kept=None)  # as much as the graph, and the caller may hold on to it
    optimizer.zero_grad()
    total = forward.training_loss(weighting.weights) * forward.share
    with ranks.adding(model.parameters()):
        total.backward()
    return _update(model, optimizer, method, forward, weighting, total, copies, clip)


def accumulated_step(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    train: Batch,
    parts: int,
    loss: Loss | None = None,
    ranks: Ranks = ALONE,
    clip: float | None = None,
) -> HalfStep:
    """:func:`half_step` in several passes over parts of the train half, of which one has to fit into memory.

    Gradients are those of one pass, unless layers mix samples: BatchNorm takes its statistics from each part.

    Args:
        model, optimizer, train, loss, ranks, clip: as for :func:`half_step`.
        method: one that weighs each sample by itself and takes no meta half.
        parts: how many; fewer where a part would have less than two samples.
    """
    targets = train[1]
    share = ranks.share(torch.empty(len(targets), dtype=torch.float64, device=targets.device))
    optimizer.zero_grad()
    runs: list[TrainPass] = []
    weights, losses = [], []
    count = min(parts, max(len(targets) // 2, 1))
    for part in zip(*(parted(each, count) for each in train), strict=True):
        inputs, labels, teacher = with_teacher(part)
        forward = train_pass(model, inputs, labels, loss, teacher=teacher)
        weights.append(method.weigh(model, optimizer, forward, part, 0).weights)
        part_loss = forward.training_loss(weights[-1]) * share * (len(labels) / len(targets))
        with ranks.adding(model.parameters()) if len(runs) == count - 1 else nullcontext():
            part_loss.backward()
        losses.append(part_loss.detach())
        runs.append(replace(forward, logits=forward.logits.detach(), losses=forward.losses.detach(), extra=None))
    logits, values, confidences = (
        torch.cat([getattr(forward, name) for forward in runs]) for name in ("logits", "losses", "confidences")
    )
    first, copies = runs[0], list(runs[0].buffers.values())
    whole = replace(
        first,
        inputs=train[0],
        targets=train[1],
        teacher=with_teacher(train)[2],
        logits=logits,
        losses=values,
        confidences=confidences,
        ranks=ranks,
        share=share,
    )
    return _update(
        model, optimizer, method, whole, Weighting(torch.cat(weights)), torch.stack(losses).sum(), copies, clip
    )


def _update(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    forward: TrainPass,
    weighting: Weighting,
    loss: Tensor,
    copies: Sequence[Tensor],
    clip: float | None,
) -> HalfStep:
    """Let the optimizer step with the gradients of all processes; ``copies`` are the buffers before."""
    figures = _add_up(model, forward, weighting, loss)
    gradient = gradient_norm(model.parameters())
    taken = all_finite(figures[0]) & gradient.isfinite()
    if weighting.finite is not None:
        taken &= weighting.finite
    taken = forward.ranks.all_true(taken)
    if clip is not None:
        clip_gradients(model.parameters(), gradient, clip)
    step_if(taken, optimizer)
    restore_unless(taken, list(model.buffers()), copies)
    method.stepped(model, taken)
    loss, meta_loss, deviation, losses, correct, images = figures
    meta = None if weighting.meta_loss is None else meta_loss
    return HalfStep(forward, weighting.weights, loss, meta, deviation, correct, losses, gradient, images, taken)


def _add_up(model: nn.Module, forward: TrainPass, weighting: Weighting, loss: Tensor) -> list[Tensor]:
    """Make running statistics those of all processes' shares.

    Returns, by the same message, loss, meta loss (0 if none), deviation, mean losses, correct answers and images, of
    all shares too.
    """
    ranks = forward.ranks
    copies = 1 if ranks.dealt else ranks.size
    labels = classes_of(forward.targets)
    figures = [
        loss.detach(),
        torch.zeros_like(loss) if weighting.meta_loss is None else weighting.meta_loss / ranks.scope.size,
        (weighting.weights - 1).abs().mean() * forward.share,
        forward.losses.detach().mean(dim=0) * forward.share,
        (forward.logits.detach().argmax(dim=-1) == labels[:, None]).sum(dim=0),
        torch.full_like(labels[0], len(labels)),
    ]
    if ranks.size == 1:
        return figures
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    sums = ranks.sum_all([*figures, *(buffer * forward.share for buffer in statistics)])
    if statistics:
        torch._foreach_copy_(statistics, sums[len(figures) :])
    return [*sums[:4], *(count / copies for count in sums[4 : len(figures)])]
