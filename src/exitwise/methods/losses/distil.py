"""Exits that learn from the labels and, in part, from an answer: a later exit's, or another network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from exitwise.catalogue.losses import DistilOptions, DistilRunOptions
from exitwise.weighting.losses import Loss, divergences


class Distillation(Loss):
    """A share of the loss is a divergence from an answer; which one is the business of subclasses.

    Args:
        distil: the share.
        distil_temperature: see :func:`~exitwise.weighting.losses.divergences`.
        label_smoothing: of the rest.
    """

    options = DistilOptions

    def __init__(
        self,
        distil: float = DistilOptions.distil,
        distil_temperature: float = DistilOptions.distil_temperature,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.distil = distil
        self.distil_temperature = distil_temperature

    def mixed(self, losses: Tensor, logits: Tensor, teachers: Tensor) -> Tensor:
        """Return losses of exits with their share of divergences."""
        divergence = divergences(logits, teachers, self.distil_temperature)
        return (1 - self.distil) * losses + self.distil * divergence


class DistilLast(Distillation):
    """Early exits learn from the last one, which learns from the labels alone."""

    def of(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        losses = super().of(logits, targets)
        taught = self.mixed(losses[:, :-1], logits[:, :-1], logits[:, -1:])
        return torch.cat([taught, losses[:, -1:]], dim=1)


class DistilNext(Distillation):
    """Each exit learns from the next one; the last from the labels alone."""

    def of(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        losses = super().of(logits, targets)
        taught = self.mixed(losses[:, :-1], logits[:, :-1], logits[:, 1:])
        return torch.cat([taught, losses[:, -1:]], dim=1)


class DistilRun(Distillation):
    """All exits learn from another network, whose answers come with the samples."""

    options = DistilRunOptions

    @classmethod
    def from_options(
        cls, options: Any, label_smoothing: float = 0.0, class_counts: Sequence[int] | None = None
    ) -> Self:
        return cls(options.distil, options.distil_temperature, label_smoothing=label_smoothing)

    def of(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        if teacher is None:
            raise ValueError("expected a teacher's logits for the samples, which all exits learn from; got none")
        return self.mixed(super().of(logits, targets), logits, teacher[:, None])
