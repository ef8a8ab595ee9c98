"""From exit proportions to the exit of each meta sample, to the meta loss.

Pure functions. Nothing here synchronises with the device: sample counts come from proportions kept on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from exitwise.budgets import exit_count
from exitwise.shapes import Float, Int

Objective = Literal["per-exit", "share-weighted"]


def allocate(confidences: Float[Tensor, "batch exits"], proportions: Sequence[float]) -> Int[Tensor, "batch"]:
    """Return the exit (0-based) of each meta sample under the given proportions; carries no gradient.

    Exit by exit, the most confident samples not yet taken leave; the last exit takes the rest (Han et
    al., ECCV 2022, section 3). Equal confidences are taken in sample order.

    Args:
        confidences: max softmax of each sample at each exit.
        proportions: a share for each exit; they sum to 1.
    """
    n, exits = confidences.shape
    confidences = confidences.detach()
    allocation = torch.full((n,), exits - 1, dtype=torch.int64, device=confidences.device)
    taken = torch.zeros(n, dtype=torch.bool, device=confidences.device)
    left = n
    for k, proportion in enumerate(proportions[:-1]):
        count = min(exit_count(n, proportion), left)
        order = confidences[:, k].masked_fill(taken, -math.inf).argsort(descending=True, stable=True)
        chosen = order[:count]
        allocation[chosen] = k
        taken[chosen] = True
        left -= count
    return allocation


def meta_loss(
    losses: Float[Tensor, "batch exits"], allocation: Int[Tensor, "batch"], objective: Objective = "share-weighted"
) -> Float[Tensor, ""]:
    """Return the loss of the meta samples, each at the exit it was allocated to.

    Args:
        losses: at the look-ahead parameters.
        allocation: exit of each sample, 0-based.
        objective: ``per-exit`` is the authors' sum over exits of the mean over that exit's samples, exits
            without samples skipped (docs/method.md, eq. 5); ``share-weighted`` is the mean over all samples, that
            is the expected loss under the exit behaviour.

    Raises:
        ValueError: for an unknown objective.
    """
    chosen = losses.gather(1, allocation[:, None]).squeeze(1)
    if objective == "share-weighted":
        return chosen.mean()
    if objective == "per-exit":
        counts = F.one_hot(allocation, losses.shape[1]).sum(dim=0)
        return (chosen / counts[allocation]).sum()
    raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}; got {objective!r}")
