"""How learning rates go over a training, by timm's schedulers."""

from __future__ import annotations

from typing import Literal

from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

Course = Literal["cosine", "linear", "step", "constant"]

STEPS = (0.5, 0.75)
"""After which shares of the training ``step`` divides learning rates by ten (Huang et al., ICLR 2018)."""


def scheduler(optimizer: Optimizer, course: Course, total: int, warmup: float) -> Scheduler:
    """Return what sets an optimizer's learning rates before each of ``total`` loaded batches.

    They rise in a straight line from 0 over a share ``warmup`` of the training, w batches, to those that the optimizer
    has; from then on lr(t) is, with u = (t - w) / (total - w),

    * ``cosine``: 0.5 * lr * (1 + cos(pi * u));
    * ``linear``: lr * (1 - u);
    * ``step``: lr, lr / 10 from u = 0.5 on, lr / 100 from u = 0.75 on;
    * ``constant``: lr.
    """
    rising = round(warmup * total)
    rest = max(2, total - rising)  # timm reports a course of a single step
    if course == "cosine":
        return CosineLRScheduler(optimizer, rest, warmup_t=rising, warmup_prefix=True, t_in_epochs=False)
    if course == "linear":
        return PolyLRScheduler(optimizer, rest, power=1.0, warmup_t=rising, warmup_prefix=True, t_in_epochs=False)
    # timm's milestone m is met at t = m - 1.
    milestones = [round(share * rest) + 1 for share in STEPS] if course == "step" else []
    return MultiStepLRScheduler(
        optimizer, milestones, decay_rate=0.1, warmup_t=rising, warmup_prefix=True, t_in_epochs=False
    )
