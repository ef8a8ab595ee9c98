"""Confidence that is to tell right answers from wrong ones, beside the labels (He et al., COSEE, AAAI 2025)."""

from __future__ import annotations

from torch import Tensor

from exitwise.catalogue.losses import MarginOptions
from exitwise.weighting.losses import Loss, margin_penalty


class Margin(Loss):
    """Adds a multiple of :func:`~exitwise.weighting.losses.margin_penalty`, of each part of a batch by itself.

    Args:
        margin: by how much right answers are to be more confident than wrong ones, on average.
        margin_weight: the multiple (the authors' lambda).
        label_smoothing: of the cross-entropy.
    """

    options = MarginOptions

    def __init__(
        self,
        margin: float = MarginOptions.margin,
        margin_weight: float = MarginOptions.margin_weight,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.margin = margin
        self.margin_weight = margin_weight

    def extra(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.margin_weight * margin_penalty(logits, targets, self.margin)
