"""From the raw outputs of the weight-prediction network to sample weights whose mean is exactly 1.

Pure functions; they know neither the network that made the raw values nor the losses they will weight.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from exitwise.processes.ranks import ALONE, Ranks
from exitwise.shapes import Float, Shaped

Centering = Literal["exits", "samples", "all"]

_MEAN_OVER: dict[str, tuple[int, ...]] = {"exits": (1,), "samples": (0,), "all": (0, 1)}


def center(
    raw: Float[Tensor, "batch exits"], over: Centering = "exits", ranks: Ranks = ALONE
) -> Float[Tensor, "batch exits"]:
    """Subtract the mean of ``raw`` over each sample's exits, each exit's samples, or everything.

    The authors' code calls these constraints ``col``, ``row`` and ``mat``. Samples are those of all of ``ranks``.

    Raises:
        ValueError: if ``over`` is not one of the three.
    """
    if over not in _MEAN_OVER:
        raise ValueError(f"centering must be one of {', '.join(get_args(Centering))}; got {over!r}")
    if over == "exits" or ranks.size == 1:
        return raw - raw.mean(dim=_MEAN_OVER[over], keepdim=True)
    packed = ranks.sum_through(torch.cat([raw.sum(dim=0), raw.new_full((1,), len(raw))]))
    mean = packed[:-1] / packed[-1]
    return raw - (mean.mean() if over == "all" else mean)


def weights_from_raw(
    raw: Float[Tensor, "batch exits"], epsilon: float, centering: Centering = "exits", ranks: Ranks = ALONE
) -> Float[Tensor, "batch exits"]:
    """Return sample weights: ``1 + epsilon * centred raw`` (Han et al., ECCV 2022, section 3; docs/method.md, eq. 2).

    They average to exactly 1 over the centred set and stay within ``1 ± 2 * epsilon`` for raw values in
    (-1, 1). For ``epsilon > 0.5`` single weights can be negative; they are not clamped.
    """
    return 1 + epsilon * center(raw, centering, ranks)


def weighted_loss(losses: Float[Tensor, "batch exits"], weights: Float[Tensor, "batch exits"]) -> Float[Tensor, ""]:
    """Return the training objective: the sum over exits of the mean over samples of weight times loss."""
    return (weights * losses).mean(dim=0).sum()


def uniform_weights(
    losses: Float[Tensor, "batch exits"], exit_weights: Shaped[Tensor, "exits"] | None = None
) -> Float[Tensor, "batch exits"]:
    """Return the weights of ordinary multi-exit training: 1, or ``exit_weights``, for every sample."""
    if exit_weights is None:
        return torch.ones_like(losses)
    return exit_weights.to(losses).expand_as(losses)
