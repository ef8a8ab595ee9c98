"""Weights from where a sample would leave, or could: the exits that it will be answered at count most.

Pure functions on detached outputs of a training pass; nothing is learned, and no second pass is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exitwise.shapes import Float, Int


def simulated_weights(
    confidences: Float[Tensor, "batch exits"], thresholds: Float[Tensor, "draws"], sharpness: float
) -> Float[Tensor, "batch exits"]:
    """Return weights that fall off from the exit where a sample would leave (He et al., COSEE, AAAI 2025).

    ``K softmax_k(-sharpness |k - e_b|)``, where e_b is the first exit of sample b whose confidence reaches a
    threshold, the last one if none does; the mean over thresholds. They average to 1 over a sample's exits.

    Args:
        confidences: max softmax of each sample at each exit.
        thresholds: several, each meant for all exits.
        sharpness: 0 for weights of 1 throughout.
    """
    _, exits = confidences.shape
    sure = confidences[:, None] >= thresholds[None, :, None]
    sure[..., -1] = True
    leaves_at = sure.to(torch.uint8).argmax(dim=-1)
    distance = (torch.arange(exits, device=confidences.device) - leaves_at[..., None]).abs()
    return exits * (-sharpness * distance).to(confidences.dtype).softmax(dim=-1).mean(dim=1)


def gated_weights(
    logits: Float[Tensor, "batch exits classes"],
    targets: Int[Tensor, "batch"],
    importance: Float[Tensor, "exits"],
    floor: float,
    threshold: float | None,
) -> Float[Tensor, "batch exits"]:
    """Return weights for the exits that a sample still needs (CGT, arXiv 2509.17885, as a public implementation does).

    Proportional to ``importance_k * eligible_k + floor``, at an average of 1 over a sample's exits. A sample is
    eligible at exit k as far as no earlier exit could have answered it: ``eligible_k = prod_{j<k} (1 - m_j)``, where
    m_j says whether exit j is right and at least ``threshold`` sure; without a threshold, m_j is the probability that
    exit j gives to the sample's class.

    Args:
        logits: of all exits.
        targets: class indices.
        importance: of each exit.
        floor: above 0, so that no sample is without weights.
        threshold: in (0, 1], or None.
    """
    probabilities = logits.softmax(dim=-1)
    own = probabilities.gather(2, targets[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
    if threshold is None:
        able = own
    else:
        surest, answers = probabilities.max(dim=-1)
        able = ((answers == targets[:, None]) & (surest >= threshold)).to(own.dtype)
    passed_on = (1 - able).cumprod(dim=1)
    eligible = torch.cat([torch.ones_like(own[:, :1]), passed_on[:, :-1]], dim=1)
    weights = importance.to(own) * eligible + floor
    return weights.shape[1] * weights / weights.sum(dim=1, keepdim=True)
