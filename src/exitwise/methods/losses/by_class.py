"""Losses for classes of which some are rare: they ask how many training samples each class has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from exitwise.catalogue.losses import ClassBalancedOptions, LogitAdjustedOptions
from exitwise.weighting.losses import Loss


class _ByClass(Loss):
    def __init__(self, class_counts: Sequence[int] | None, label_smoothing: float) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.class_counts = None if class_counts is None else torch.tensor(class_counts, dtype=torch.float64)
        if self.class_counts is not None and not (self.class_counts > 0).all():
            raise ValueError(f"expected samples of every class; got {list(class_counts or ())}")

    @classmethod
    def from_options(
        cls, options: Any, label_smoothing: float = 0.0, class_counts: Sequence[int] | None = None
    ) -> Self:
        return cls(**vars(options), class_counts=class_counts, label_smoothing=label_smoothing)


class ClassBalanced(_ByClass):
    """A sample of class y counts (1 - overlap) / (1 - overlap ** n_y) times, for n_y training samples of that class.

    The factors are scaled to a mean of 1 over classes (Cui et al., CVPR 2019, equation 12 and section 5).

    Args:
        overlap: the authors' beta: 0 leaves samples as they are, towards 1 they count by 1 / n_y.
        class_counts: training samples of each class; None: classes are alike.
        label_smoothing: of the cross-entropy.
    """

    options = ClassBalancedOptions

    def __init__(
        self,
        overlap: float = ClassBalancedOptions.overlap,
        *,
        class_counts: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_counts, label_smoothing)
        self.factors = None
        if self.class_counts is not None:
            factors = (1 - overlap) / (1 - overlap**self.class_counts)
            self.factors = factors / factors.mean()

    def of(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        losses = super().of(logits, targets)
        return losses if self.factors is None else losses * self.factors.to(losses)[targets, None]


class LogitAdjusted(_ByClass):
    """Cross-entropy of logits to which ``adjustment`` times the logarithm of each class's share is added.

    A network trained so gives logits for classes that are equally frequent (Menon et al., Long-tail learning via logit
    adjustment, ICLR 2021, equation 10).

    Args:
        adjustment: the authors' tau.
        class_counts: training samples of each class; None: classes are alike.
        label_smoothing: of the cross-entropy.
    """

    options = LogitAdjustedOptions

    def __init__(
        self,
        adjustment: float = LogitAdjustedOptions.adjustment,
        *,
        class_counts: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_counts, label_smoothing)
        shares = None if self.class_counts is None else self.class_counts / self.class_counts.sum()
        self.added = None if shares is None else adjustment * shares.log()

    def of(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        return super().of(logits if self.added is None else logits + self.added.to(logits), targets)
