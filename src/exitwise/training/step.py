"""One training step: a loaded batch in halves, one optimizer update on each (docs/method.md, "One step")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.methods.base import Method
from exitwise.weighting.gradient import Batch, TrainPass, train_pass
from exitwise.weighting.guard import all_finite, finite_gradients, restore_unless, step_if
from exitwise.weighting.normalize import weighted_loss


class HalfStep(NamedTuple):
    """What one update did.

    Attributes:
        run: the forward pass over the train half; its graph is spent.
        weights: the sample weights used, (B, K).
        loss: the weighted training loss, a detached scalar.
        meta_loss: a detached scalar, or None.
        taken: False where a loss, the meta-gradient or a gradient was not finite, so that nothing was changed; a bool
            scalar on the device.
    """

    run: TrainPass
    weights: Tensor
    loss: Tensor
    meta_loss: Tensor | None
    taken: Tensor


def half_batches(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Batch, Batch]]:
    """(train half, meta half), then the other way round; of an odd batch the first half is one larger.

    Raises:
        ValueError: if there are fewer than two samples.
    """
    if len(inputs) < 2:
        raise ValueError(f"a batch is trained on in halves and needs at least 2 samples; got {len(inputs)}")
    first_inputs, second_inputs = inputs.chunk(2)
    first_targets, second_targets = targets.chunk(2)
    first, second = (first_inputs, first_targets), (second_inputs, second_targets)
    yield first, second
    yield second, first


def half_step(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    train: Batch,
    meta: Batch,
    index: int,
    label_smoothing: float = 0.0,
) -> HalfStep:
    """One update of ``model`` on the train half, weighted by ``method``; see :class:`Method`.

    Where something is not finite, the network's parameters and buffers and both optimizers are left as they were.
    """
    buffers = list(model.buffers())
    copies = [buffer.clone() for buffer in buffers]
    run = train_pass(model, *train, label_smoothing, keep=method.takes_tangents(index))
    weighting = method.weigh(model, optimizer, run, meta, index)
    optimizer.zero_grad()
    loss = weighted_loss(run.losses, weighting.weights)
    loss.backward()
    taken = all_finite(loss) & finite_gradients(model.parameters())
    if weighting.finite is not None:
        taken &= weighting.finite
    step_if(taken, optimizer)
    restore_unless(taken, buffers, copies)
    method.stepped(model, taken)
    return HalfStep(run, weighting.weights, loss.detach(), weighting.meta_loss, taken)
