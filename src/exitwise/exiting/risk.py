"""Thresholds with a guarantee: with high probability, the loss against the full network stays within a tolerance.

Learn then Test (Angelopoulos et al., 2021) over a sequence of policies from cautious to bold, as Jazbec et al. (Fast
yet Safe, NeurIPS 2024) do for early exits, with the betting test of Waudby-Smith and Ramdas (JRSS B, 2024). Works on
recorded outputs. Imports no torch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from exitwise.budgets import check_open_share
from exitwise.errors import UserError
from exitwise.exiting import rule
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.calibration import all_at, members
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import Family
from exitwise.shapes import Bool, Float, Float64, Int

Risk = Literal["accuracy-drop", "disagreement"]
DESIGN_SHARE = 0.3
"""Share of the calibration samples that the policies are made from; the others test them."""

SEQUENCE = 80
"""Policies in the sequence."""

MOST_TESTED = 1_000_000
"""Samples that a guarantee is taken to need at most."""


class RiskControlled(NamedTuple):
    """Result of :func:`control_risk`.

    Attributes:
        policy: what was chosen.
        proportions: the exit proportions that its thresholds were made for.
        holds: whether anything but the full network could be guaranteed.
        tested: samples that the test had.
        mean_loss: of the policy on those, as :data:`Risk` defines it; with parts, of the part that loses most.
    """

    policy: ExitPolicy
    proportions: list[float]
    holds: bool
    tested: int
    mean_loss: float


def control_risk(
    confidences: Float[Array, "samples exits"],
    predictions: Int[Array, "samples exits"],
    targets: Int[Array, "samples"],
    tolerance: float,
    guarantee: float = 0.95,
    *,
    risk: Risk = "accuracy-drop",
    seed: int = 0,
    family: Family = "geometric",
    full: Int[Array, "samples"] | None = None,
    parts: Int[Array, "samples"] | None = None,
    exit_costs: Sequence[float] | None = None,
) -> RiskControlled:
    """Return the cheapest thresholds whose expected loss exceeds ``tolerance`` with a probability of at most
    ``1 - guarantee``.

    The probability is over calibration samples drawn like those to come. A part of them makes a sequence of policies
    from a family, and of those by which all leave at one exit; the rest tests one after the other, most cautious first,
    until one fails. Since the sequence does not depend on what tests it, no correction for many tests is needed.

    Args:
        confidences, predictions: of calibration samples at each exit. Temperatures and what else the measure has been
            fitted to be must come from the first part of :func:`design_and_test` alone.
        targets: class indices.
        tolerance: in (0, 1).
        guarantee: the probability, in (0, 1).
        risk: ``accuracy-drop``: accuracy of the full network minus that of the policy; ``disagreement``: share of
            samples given another class than the full network's, which needs no targets.
        seed: of the division of the samples.
        family: of the thresholds.
        full: the full network's own answers, where the measure makes others of them; None: those at the last exit.
        parts: which part of the samples, such as a class or group, each is of. The loss of every part is controlled
            then, and the probability is that of all together. A policy passes if the tests of all parts reject, each
            at the same level: had one part a larger loss, its own test would let it pass with that probability alone
            (an intersection-union test, Berger, Technometrics 24, 1982). That needs no correction for their number.
        exit_costs: of leaving at each exit, cheap to dear; 0, 1, ... if None.

    Returns:
        The result; where nothing could be guaranteed, a policy by which nobody leaves early.

    Raises:
        ValueError: for a tolerance, guarantee or risk that is none.
    """
    for name, value in (("tolerance", tolerance), ("guarantee", guarantee)):
        check_open_share(name, value)
    if risk not in get_args(Risk):
        raise UserError(f"risk must be one of {', '.join(get_args(Risk))}; got {risk!r}")
    confidences, predictions, targets = map(as_numpy, (confidences, predictions, targets))
    n, exits = confidences.shape
    design, test = design_and_test(n, seed)
    nobody = [*[0.0] * (exits - 1), 1.0]
    chosen = RiskControlled(ExitPolicy([None] * (exits - 1)), nobody, False, len(test), 0.0)
    if len(design) == 0 or len(test) == 0:
        return chosen
    tried = [
        *reversed(members(confidences[design], SEQUENCE, 6, family)),
        *(all_at(k, exits) for k in range(exits - 1)),
    ]
    answers = predictions[:, -1] if full is None else as_numpy(full)
    all_losses = np.stack([_losses(p, confidences, predictions, answers, targets, risk) for p, _ in tried], axis=1)
    order = _with_those_alone(all_losses[design].mean(axis=0), exits - 1)
    policies, sequence = zip(*(tried[place] for place in order), strict=True)
    losses = all_losses[test][:, order]
    low = _least_loss(risk)
    labels = np.zeros(n, np.int64) if parts is None else as_numpy(parts)
    each = [losses[labels[test] == part] for part in np.unique(labels)]
    bound = (tolerance - low) / (1 - low)
    rejected = np.all([betting_rejects((some - low) / (1 - low), bound, 1 - guarantee) for some in each], axis=0)
    passed = int(np.cumprod(rejected).sum())
    if passed == 0:
        return chosen
    costs = np.arange(exits) if exit_costs is None else np.asarray(exit_costs)
    spent = [costs[policy.exit_of(confidences[design])].mean() for policy in policies[:passed]]
    best = passed - 1 - int(np.argmin(spent[::-1]))  # of equally cheap ones the last
    worst = max(float(some[:, best].mean()) for some in each)
    return RiskControlled(policies[best], sequence[best], True, len(test), worst)


def _with_those_alone(losses: Float[np.ndarray, "policies"], alone: int) -> list[int]:
    """Return the order in which policies are tested: of a family, cautious first, each of the last ``alone`` put before
    the first that loses as much on the samples that make the sequence."""
    order = list(range(len(losses) - alone))
    for one in range(len(losses) - alone, len(losses)):
        order.insert(next((k for k, each in enumerate(order) if losses[each] >= losses[one]), len(order)), one)
    return order


class AnswersControlled(NamedTuple):
    """Result of :func:`control_answers`.

    Attributes:
        abstain_below: confidence below which nothing is answered.
        holds: whether any answers could be guaranteed.
        tested: samples that the test had.
        answered: of those.
        right: of those that are answered.
    """

    abstain_below: float
    holds: bool
    tested: int
    answered: int
    right: int


def control_answers(
    confidences: Float[Array, "samples"],
    right: Bool[Array, "samples"],
    accuracy: float,
    guarantee: float = 0.95,
    *,
    seed: int = 0,
) -> AnswersControlled:
    """Return the lowest confidence to answer from, so that the expected accuracy of what is answered falls below
    ``accuracy`` with a probability of at most ``1 - guarantee``.

    The same test as :func:`control_risk`, on those of the tested samples that are answered: they are drawn like those
    to come that are. The first part of the samples says which confidences to try, from the one at which the test is
    surest to pass to bolder ones until one fails (selective risk: Geifman and El-Yaniv, NeurIPS 2017).

    Args:
        confidences: of calibration samples, where they leave. Nothing that made them, thresholds included, may have
            seen more than the first part of :func:`design_and_test`.
        right: whether they are answered rightly.
        accuracy: in (0, 1).
        guarantee: the probability, in (0, 1).
        seed: of the division of the samples.

    Returns:
        The result; where nothing could be guaranteed, ``abstain_below`` is 1.

    Raises:
        UserError: for an accuracy or guarantee that is none.
    """
    for name, value in (("accuracy", accuracy), ("guarantee", guarantee)):
        check_open_share(name, value)
    confidences, right = as_numpy(confidences), as_numpy(right)
    design, test = design_and_test(len(right), seed)
    found = AnswersControlled(1.0, False, len(test), 0, 0)
    for level in _levels_to_try(confidences[design], right[design], accuracy):
        answered = rule.answered(confidences[test], level)
        wrong = (~right[test][answered, None]).astype(np.float64)
        if not betting_rejects(wrong, 1 - accuracy, 1 - guarantee)[0]:
            break
        found = AnswersControlled(level, True, len(test), len(wrong), int(len(wrong) - wrong.sum()))
    return found


def _levels_to_try(
    confidences: Float[np.ndarray, "design"], right: Bool[np.ndarray, "design"], accuracy: float
) -> list[float]:
    """Return confidences to answer from, falling: from where accuracy seems surest to be kept, to 0."""
    sure = confidences[np.isfinite(confidences)]
    if len(sure) == 0:
        return []
    levels = np.unique(np.quantile(sure, np.linspace(0, 1, SEQUENCE), method="inverted_cdf"))[::-1]
    answered = confidences[:, None] >= levels
    count = answered.sum(axis=0)
    error = ((answered & ~right[:, None]).sum(axis=0) + 1) / (count + 2)
    surest = int(((1 - accuracy - error) * np.sqrt(count / (error * (1 - error)))).argmax())
    return [*levels[surest:].tolist(), 0.0]


def least_samples(tolerance: float, guarantee: float, risk: Risk) -> int:
    """Return how many calibration samples :func:`control_risk` needs for a policy that loses nothing on any of them.

    One that loses something needs more.
    """
    low = _least_loss(risk)
    tested = np.arange(1, MOST_TESTED + 1)
    nothing = np.full((MOST_TESTED, 1), -low / (1 - low))

    def enough(count: int) -> bool:
        return bool(betting_rejects(nothing[:count], (tolerance - low) / (1 - low), 1 - guarantee)[0])

    first = bisect.bisect_left(tested, True, key=lambda count: enough(int(count)))
    return math.ceil((first + 1) / (1 - DESIGN_SHARE))


def design_and_test(samples: int, seed: int = 0) -> tuple[Int[np.ndarray, "design"], Int[np.ndarray, "test"]]:
    """Return which samples make the sequence of policies of :func:`control_risk`, and which test it: indices."""
    order = np.array(_permutation(samples, seed), dtype=np.int64)
    design, test = np.split(order, [round(samples * DESIGN_SHARE)])
    return design, test


def _least_loss(risk: Risk) -> float:
    """Return the least loss that a sample can have."""
    return -1.0 if risk == "accuracy-drop" else 0.0


def _permutation(size: int, seed: int) -> list[int]:
    """Return the numbers below ``size`` in random order (Fisher and Yates).

    The order is that of ``torch.randperm`` on a CPU, by which guarantees have been given before this needed no torch:
    the same Mersenne Twister, a draw of 32 bits for each place, modulo what is left.
    """
    order = list(range(size))
    draws = np.random.RandomState(seed % 2**32).randint(0, 2**32, size=max(size - 1, 0), dtype=np.uint32)
    for place, draw in enumerate(draws.tolist()):
        other = place + draw % (size - place)
        order[place], order[other] = order[other], order[place]
    return order


def _losses(
    policy: ExitPolicy,
    confidences: Float[np.ndarray, "samples exits"],
    predictions: Int[np.ndarray, "samples exits"],
    full: Int[np.ndarray, "samples"],
    targets: Int[np.ndarray, "samples"],
    risk: Risk,
) -> Float64[np.ndarray, "samples"]:
    """Return the loss of each sample: in {-1, 0, 1} for accuracy-drop, {0, 1} for disagreement."""
    taken = np.take_along_axis(predictions, policy.exit_of(confidences)[:, None], 1)[:, 0]
    losses: Float64[np.ndarray, "samples"]
    if risk == "disagreement":
        losses = (taken != full).astype(np.float64)
    else:
        losses = (full == targets).astype(np.float64) - (taken == targets)
    return losses


def betting_rejects(
    losses: Float64[np.ndarray, "samples policies"], bound: float, delta: float
) -> Bool[np.ndarray, "policies"]:
    """Return, for each policy, whether "its mean loss is above ``bound``" can be rejected at level ``delta``.

    The capital of a gambler who bets against that hypothesis, sample by sample and without knowing the next, is a
    supermartingale if it is true; it reaches 1 / delta with probability at most delta (Ville). Waudby-Smith and
    Ramdas, "Estimating means of bounded random variables by betting", with their predictable plug-in bets.

    Args:
        losses: of independent samples, in [0, 1]; without any nothing is rejected.
        bound: in (0, 1).
        delta: in (0, 1).
    """
    n = len(losses)
    if n == 0:
        return np.zeros(losses.shape[1], dtype=np.bool_)
    counts = np.arange(1, n + 1, dtype=np.float64)[:, None]
    means = (0.5 + losses.cumsum(0)) / (counts + 1)
    variances = (0.25 + ((losses - means) ** 2).cumsum(0)) / (counts + 1)
    known = np.concatenate([np.full_like(variances[:1], 0.25), variances[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * known)), 0.75 / (1 - bound))
    capital = np.log1p(-bets * (losses - bound)).cumsum(0)
    rejected: Bool[np.ndarray, "policies"] = capital.max(axis=0) >= math.log(1 / delta)
    return rejected
