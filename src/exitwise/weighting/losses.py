"""What each sample's loss is at each exit, before weights: cross-entropy, and in part a divergence from an answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exitwise.shapes import Float, Int

DISTILLATION_TEMPERATURE = 2.0
"""Of the answers that are compared, by default."""


def exit_losses(
    logits: Float[Tensor, "batch exits classes"],
    targets: Int[Tensor, "batch"],
    label_smoothing: float = 0.0,
    distil: float = 0.0,
    teacher: Float[Tensor, "batch classes"] | None = None,
    temperature: float = DISTILLATION_TEMPERATURE,
) -> Float[Tensor, "batch exits"]:
    """Return the loss of each sample at each exit, unreduced: ``(1 - distil)`` parts cross-entropy, ``distil`` parts
    :func:`divergences` from a teacher's answer.

    Without a teacher the last exit teaches the others, and learns from the labels alone.

    Args:
        logits: of all exits.
        targets: class indices.
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
        distil: share of the divergence.
        teacher: logits of another network for the same samples, which all exits learn from.
        temperature: see :func:`divergences`.
    """
    samples, exits, _ = logits.shape
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        targets.repeat_interleave(exits, dim=0),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    losses = losses.view(samples, exits)
    if not distil or (exits == 1 and teacher is None):
        return losses
    if teacher is not None:
        return (1 - distil) * losses + distil * divergences(logits, teacher, temperature)
    taught = (1 - distil) * losses[:, :-1] + distil * divergences(logits[:, :-1], logits[:, -1], temperature)
    return torch.cat([taught, losses[:, -1:]], dim=1)


def divergences(
    logits: Float[Tensor, "batch exits classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, "batch exits"]:
    """Return the Kullback-Leibler divergence of each exit's probabilities from the teacher's, both at a temperature.

    It counts that temperature squared, so that its gradient keeps its size (Hinton et al., 2015). No gradient reaches
    the teacher.
    """
    answers = (logits / temperature).log_softmax(dim=-1)
    taught = (teacher.detach().to(logits) / temperature).log_softmax(dim=-1)[:, None]
    return (taught.exp() * (taught - answers)).sum(dim=-1) * temperature**2
