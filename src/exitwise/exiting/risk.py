"""Thresholds with a guarantee: with high probability, the loss against the full network stays within a tolerance.

Learn then Test (Angelopoulos et al., 2021) over a sequence of policies from cautious to bold, as Jazbec et al. (Fast
yet Safe, NeurIPS 2024) do for early exits, with the betting test of Waudby-Smith and Ramdas (JRSS B, 2024). Works on
recorded outputs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from exitwise.budgets import check_open_share, geometric_proportions
from exitwise.exiting.calibration import calibrate_proportions
from exitwise.exiting.policy import ExitPolicy

Risk = Literal["accuracy-drop", "disagreement"]
DESIGN_SHARE = 0.3
"""Share of the calibration samples that the policies are made from; the others test them."""

SEQUENCE = 80
"""Policies in the sequence."""


class RiskControlled(NamedTuple):
    """Result of :func:`control_risk`.

    Attributes:
        policy: what was chosen.
        proportions: the exit proportions that its thresholds were made for.
        holds: whether anything but the full network could be guaranteed.
        tested: samples that the test had.
        mean_loss: of the policy on those, as :data:`Risk` defines it.
    """

    policy: ExitPolicy
    proportions: list[float]
    holds: bool
    tested: int
    mean_loss: float


def control_risk(
    confidences: Tensor,
    predictions: Tensor,
    targets: Tensor,
    tolerance: float,
    confidence: float = 0.95,
    *,
    risk: Risk = "accuracy-drop",
    seed: int = 0,
) -> RiskControlled:
    """The boldest thresholds whose expected loss exceeds ``tolerance`` with probability at most ``1 - confidence``.

    The probability is over calibration samples drawn like those to come. A part of them makes a sequence of policies
    from the geometric family; the rest tests one after the other, most cautious first, until one fails. Since the
    sequence does not depend on what tests it, no correction for many tests is needed.

    Args:
        confidences, predictions: of N calibration samples at K exits, (N, K). Temperatures, if any, must have been
            fitted on the first part of :func:`design_and_test` alone.
        targets: class indices (N).
        tolerance: in (0, 1).
        confidence: in (0, 1).
        risk: ``accuracy-drop``: accuracy of the full network minus that of the policy; ``disagreement``: share of
            samples given another class than the full network's, which needs no targets.
        seed: of the division of the samples.

    Returns:
        The result; where nothing could be guaranteed, a policy by which nobody leaves early.

    Raises:
        ValueError: for a tolerance, confidence or risk that is none.
    """
    for name, value in (("tolerance", tolerance), ("confidence", confidence)):
        check_open_share(name, value)
    if risk not in get_args(Risk):
        raise ValueError(f"risk must be one of {', '.join(get_args(Risk))}; got {risk!r}")
    n, exits = confidences.shape
    design, test = design_and_test(n, seed)
    nobody = [*[0.0] * (exits - 1), 1.0]
    chosen = RiskControlled(ExitPolicy([None] * (exits - 1)), nobody, False, len(test), 0.0)
    if len(design) == 0 or len(test) == 0:
        return chosen
    sequence = [geometric_proportions(log_p, exits) for log_p in torch.linspace(6, -6, SEQUENCE).tolist()]
    policies = [calibrate_proportions(confidences[design], proportions) for proportions in sequence]
    losses = torch.stack([_losses(policy, confidences, predictions, targets, risk)[test] for policy in policies], dim=1)
    low = -1.0 if risk == "accuracy-drop" else 0.0
    rejected = betting_rejects((losses - low) / (1 - low), (tolerance - low) / (1 - low), 1 - confidence)
    passed = int(rejected.long().cumprod(0).sum())
    if passed == 0:
        return chosen
    best = passed - 1
    return RiskControlled(policies[best], sequence[best], True, len(test), losses[:, best].mean().item())


def design_and_test(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Which samples make the sequence of policies of :func:`control_risk`, and which test it: indices."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    design, test = order.tensor_split([round(samples * DESIGN_SHARE)])
    return design, test


def _losses(policy: ExitPolicy, confidences: Tensor, predictions: Tensor, targets: Tensor, risk: Risk) -> Tensor:
    """Loss of each sample, float64 (N): in {-1, 0, 1} for accuracy-drop, {0, 1} for disagreement."""
    taken = predictions.gather(1, policy.exit_of(confidences)[:, None])[:, 0]
    full = predictions[:, -1]
    if risk == "disagreement":
        return (taken != full).double()
    return (full == targets).double() - (taken == targets).double()


def betting_rejects(losses: Tensor, bound: float, delta: float) -> Tensor:
    """For each column, whether "the mean is above ``bound``" can be rejected at level ``delta``: bool (J).

    The capital of a gambler who bets against that hypothesis, sample by sample and without knowing the next, is a
    supermartingale if it is true; it reaches 1 / delta with probability at most delta (Ville). Waudby-Smith and
    Ramdas, "Estimating means of bounded random variables by betting", with their predictable plug-in bets.

    Args:
        losses: independent samples in [0, 1], float64 (n, J).
        bound: in (0, 1).
        delta: in (0, 1).
    """
    n = len(losses)
    counts = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    means = (0.5 + losses.cumsum(0)) / (counts + 1)
    variances = (0.25 + ((losses - means) ** 2).cumsum(0)) / (counts + 1)
    known = torch.cat([torch.full_like(variances[:1], 0.25), variances[:-1]])
    bets = torch.sqrt(2 * math.log(1 / delta) / (n * known)).clamp(max=0.75 / (1 - bound))
    capital = torch.log1p(-bets * (losses - bound)).cumsum(0)
    return capital.max(dim=0).values >= math.log(1 / delta)
