"""What each sample's loss is at each exit, before weights: cross-entropy, and in part a divergence from an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from exitwise.catalogue.options import Options
from exitwise.shapes import Float, Int

Targets = Int[Tensor, "batch"] | Float[Tensor, "batch classes"]
"""Class indices or, of samples that are mixed, a probability of each class."""


class Loss:
    """Cross-entropy with the labels. Parts of the axis of losses override :meth:`of` or :meth:`extra`.

    Args:
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.

    Attributes:
        options: the dataclass of its options, which are its other arguments.
    """

    options: ClassVar[type[Options]] = Options

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    @classmethod
    def from_options(
        cls, options: Any, label_smoothing: float = 0.0, class_counts: Sequence[int] | None = None
    ) -> Self:
        """Return a loss from an instance of :attr:`options`.

        Args:
            class_counts: training samples of each class, for a loss that asks how frequent they are.
        """
        return cls(**vars(options), label_smoothing=label_smoothing)

    def of(
        self,
        logits: Float[Tensor, "batch exits classes"],
        targets: Targets,
        teacher: Float[Tensor, "batch classes"] | None = None,
    ) -> Float[Tensor, "batch exits"]:
        """Return the loss of each sample at each exit, unreduced, which weights multiply and the meta loss is made of.

        Args:
            logits: of all exits.
            targets: class indices, or probabilities of classes.
            teacher: logits of another network for the same samples, where there is one.
        """
        return cross_entropies(logits, targets, self.label_smoothing)

    def extra(self, logits: Float[Tensor, "batch exits classes"], targets: Targets) -> Float[Tensor, ""] | None:
        """Return what is learned besides, of the samples together; no weight multiplies it. None: nothing."""
        return None


def cross_entropies(
    logits: Float[Tensor, "batch exits classes"], targets: Targets, label_smoothing: float = 0.0
) -> Float[Tensor, "batch exits"]:
    """Return the cross-entropy of each sample at each exit."""
    samples, exits, _ = logits.shape
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        (targets.to(logits) if targets.is_floating_point() else targets).repeat_interleave(exits, dim=0),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(samples, exits)


def classes_of(targets: Targets) -> Int[Tensor, "batch"]:
    """Return the class of each sample; of one that is mixed, the one that it shows most of."""
    return targets.argmax(dim=1) if targets.is_floating_point() else targets


def divergences(
    logits: Float[Tensor, "batch exits classes"], teachers: Float[Tensor, "batch answers classes"], temperature: float
) -> Float[Tensor, "batch exits"]:
    """Return the Kullback-Leibler divergence of each exit's probabilities from a teacher's, both at a temperature.

    It counts that temperature squared, so that its gradient keeps its size (Hinton et al., 2015). No gradient reaches
    the teachers.

    Args:
        logits: of the exits.
        teachers: logits that they learn from, of each exit's own teacher or of one for all.
        temperature: above 1 it flattens both.
    """
    answers = (logits / temperature).log_softmax(dim=-1)
    taught = (teachers.detach().to(logits) / temperature).log_softmax(dim=-1)
    return (taught.exp() * (taught - answers)).sum(dim=-1) * temperature**2


def margin_penalty(
    logits: Float[Tensor, "batch exits classes"], targets: Int[Tensor, "batch"], margin: float
) -> Float[Tensor, ""]:
    """Return how far confidence fails to tell right answers from wrong ones (He et al., COSEE, AAAI 2025).

    The mean over exits of max(0, mean confidence of wrong answers - mean confidence of right ones + margin); 0 for an
    exit that is always right or always wrong.
    """
    confidences, answers = logits.softmax(dim=-1).max(dim=-1)
    right = (answers == targets[:, None]).to(confidences.dtype)
    many_right, many_wrong = right.sum(dim=0), (1 - right).sum(dim=0)
    mean_right = (confidences * right).sum(dim=0) / many_right.clamp(min=1)
    mean_wrong = (confidences * (1 - right)).sum(dim=0) / many_wrong.clamp(min=1)
    short = (mean_wrong - mean_right + margin).relu()
    return torch.where(many_right * many_wrong > 0, short, 0).mean()
