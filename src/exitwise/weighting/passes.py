"""A forward pass over a half batch, with all that its weighting needs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exitwise.kernels.compiled import is_compiled
from exitwise.kernels.inputs import Inputs, device_of
from exitwise.kernels.tangents import KeptOutputs
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.shapes import Float, Int
from exitwise.weighting.calls import stacked
from exitwise.weighting.losses import Loss, Targets
from exitwise.weighting.normalize import weighted_loss
from exitwise.weighting.replay import RandomState

Batch = (
    tuple[Inputs, Int[Tensor, "meta"] | Float[Tensor, "meta classes"]]
    | tuple[Inputs, Int[Tensor, "meta"], Float[Tensor, "meta classes"]]
)
"""Inputs and class indices, or probabilities of classes; where a teacher is learned from, its logits too."""


@dataclass(frozen=True)
class TrainPass:
    """One forward pass of a network over a half batch, with its autograd graph.

    Attributes:
        inputs, targets: the half batch, with class indices or probabilities of classes.
        logits: with graph.
        losses: of each sample at each exit, with graph; see :meth:`~exitwise.weighting.losses.Loss.of`.
        confidences: max softmax of each sample at each exit, detached.
        loss, teacher: what ``losses`` were computed with.
        random_state: generator states before the pass, so that dropout can be replayed (not that of a network compiled
            without the compiler's ``fallback_random``, which draws its own numbers).
        buffers: the network's before the pass, by name, so that what it reads and updates can be read again.
        autocast: whether it ran in mixed precision.
        kept: outputs of its layers that forward mode need not compute again; None if they were not kept.
        ranks: the processes to which the half batch was dealt; this is the pass over one share.
        share: which part of the half batch that is.
        extra: what is learned besides, with graph; None: nothing.
        counts: what each exit counts in training, beside all weights; None: 1. The meta loss knows nothing of it.
    """

    inputs: Inputs
    targets: Targets
    logits: Float[Tensor, "batch exits classes"]
    losses: Float[Tensor, "batch exits"]
    confidences: Float[Tensor, "batch exits"]
    loss: Loss
    random_state: RandomState
    buffers: dict[str, Tensor]
    autocast: bool
    kept: KeptOutputs | None = None
    ranks: Ranks = ALONE
    share: Float[Tensor, ""] | float = 1.0
    teacher: Float[Tensor, "batch classes"] | None = None
    extra: Float[Tensor, ""] | None = None
    counts: Float[Tensor, "exits"] | None = None

    def training_loss(self, weights: Float[Tensor, "batch exits"]) -> Float[Tensor, ""]:
        """Return what the network is trained on with these weights, as if the share were the half batch."""
        loss = weighted_loss(self.losses, weights if self.counts is None else weights * self.counts)
        return loss if self.extra is None else loss + self.extra


def train_pass(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets,
    loss: Loss | None = None,
    *,
    keep: bool = False,
    ranks: Ranks = ALONE,
    teacher: Float[Tensor, "batch classes"] | None = None,
) -> TrainPass:
    """Run ``model`` on a half batch and keep what the weighting needs.

    Args:
        model: maps ``inputs`` to a sequence of logits (batch, classes), one per exit.
        inputs: of the samples.
        targets: class indices, or probabilities of classes.
        loss: what exits learn from; None: the labels.
        teacher: a teacher's logits for the samples, where ``loss`` takes them.
        keep: keep what its layers compute; that makes forward mode over this pass cheaper.
        ranks: the processes to which the half batch was dealt; the inputs are this one's share.

    Raises:
        ValueError: if the model returns a single tensor.
    """
    random_state = RandomState.capture(device_of(inputs), model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    autocast = torch.is_autocast_enabled(device_of(inputs).type)  # whose products have another precision
    keep = keep and not autocast
    kept = KeptOutputs() if keep else None
    with kept or nullcontext():
        outputs = model(inputs)
    if isinstance(outputs, Tensor):
        raise ValueError(f"expected a model that returns a list of logits, one per exit; got a tensor {outputs.shape}")
    if not random_state.is_current() and any(map(is_compiled, model.modules())):
        kept = None  # compiled code may draw its own random numbers: forward mode will have another dropout mask
    logits = stacked(outputs)
    loss = loss or Loss()
    losses = loss.of(logits, targets, teacher)
    confidences = exit_confidences(logits)
    share = ranks.share(confidences)
    return TrainPass(
        *(inputs, targets, logits, losses, confidences, loss, random_state, buffers),
        *(autocast, kept, ranks, share, teacher, loss.extra(logits, targets)),
    )


def with_teacher(batch: Batch) -> tuple[Inputs, Tensor, Tensor | None]:
    """Return inputs, targets and a teacher's logits, None if there are none."""
    return (*batch, None) if len(batch) == 2 else batch


def exit_confidences(logits: Float[Tensor, "batch exits classes"]) -> Float[Tensor, "batch exits"]:
    """Return the max softmax of each sample at each exit, detached."""
    return logits.detach().softmax(dim=-1).amax(dim=-1)
