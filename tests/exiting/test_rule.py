"""The exit rule: alike on NumPy arrays and torch tensors, for many samples and for one, and as a loop says."""

import numpy as np
import pytest
import torch

import reference
from exitwise.exiting import rule
from exitwise.exiting.policy import ExitPolicy

THRESHOLDS = (0.5, None, 0.7, float(np.float32(0.3)))
"""One that every type holds, none, and one that no binary type holds, as float64 and as float32 has it."""
TYPES = [np.float32, np.float64, torch.float32, torch.float64]


def confidences(dtype, count=300):
    """Random confidences of five exits with ties, values beside each threshold, and some that are not numbers."""
    values = np.random.default_rng(0).random((count, 5)).round(1)
    numbers = values.astype(dtype) if isinstance(dtype, type) else torch.from_numpy(values).to(dtype)
    epsilon = (np.finfo if isinstance(dtype, type) else torch.finfo)(dtype).eps
    for row, factor in enumerate((1, 1 + epsilon, 1 - epsilon)):
        for exit, threshold in enumerate(THRESHOLDS):
            numbers[row, exit] = (threshold or 0) * factor
    numbers[3], numbers[4, 0] = float("nan"), float("nan")
    return numbers


def loop(row, dtype):
    """The exit of a sample, by the rule in words."""
    for exit, threshold in enumerate(THRESHOLDS):
        if threshold is not None and row[exit] >= np.float64(np.dtype(dtype).type(threshold)):
            return exit
    return len(THRESHOLDS)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_exit_taken_is_the_first_whose_threshold_is_reached(dtype):
    given = confidences(dtype)
    taken = rule.exits_taken(given, THRESHOLDS)
    name = dtype if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
    assert taken.tolist() == [loop(row, name) for row in given.tolist()]
    assert str(taken.dtype).endswith("int64")
    assert set(taken.tolist()) == {0, 2, 3, 4}
    assert type(taken) is type(given)
    for exit in range(5):
        at_once = rule.leaves(given[:, exit], exit, THRESHOLDS)
        assert str(at_once.dtype).endswith("bool")
        alone = [rule.leaves_alone(given[i : i + 1, exit], exit, THRESHOLDS) for i in range(len(given))]
        assert at_once.tolist() == alone
        assert rule.can_leave(exit, THRESHOLDS) == (exit != 1) == any(alone)


def test_what_is_not_a_number_stays_to_the_end():
    lost = np.full((2, 3), np.nan, np.float32)
    assert rule.exits_taken(lost, (0.0, -1.0)).tolist() == [2, 2]
    assert not rule.leaves_alone(torch.tensor([torch.nan]), 0, (0.0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_sample_leaves_as_a_batch_does(dtype):
    """Thresholds between the numbers that a confidence can be are where rounding decides."""
    thresholds = [*torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist(), None]
    policy = ExitPolicy(thresholds)
    decisions = set()
    for exit in range(policy.exits):
        threshold = (*thresholds, None)[exit]
        near = torch.tensor(0.5 if threshold is None else threshold, dtype=dtype)
        for confidence in (near, near * (1 - torch.finfo(dtype).eps), near * (1 + torch.finfo(dtype).eps)):
            together = policy.leaves(confidence.expand(2), exit).tolist()
            decision = policy.leaves_alone(confidence[None], exit)
            assert [decision] * 2 == together
            decisions.add(decision)
    assert decisions == {True, False}


def test_a_policy_leaves_by_the_rule():
    given = np.random.default_rng(1).random((100, 5)).round(1)
    assert ExitPolicy(THRESHOLDS).exit_of(given).tolist() == reference.leave(given, THRESHOLDS)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_what_is_less_sure_than_asked_is_not_answered(kind):
    confidences = kind(np.array([0.3, 0.7, np.nan, 0.69999, 1.0], np.float32))
    assert ExitPolicy([0.5]).answered(confidences).tolist() == [True, True, False, True, True]
    assert ExitPolicy([0.5], abstain_below=0.7).answered(confidences).tolist() == [False, True, False, False, True]
    assert ExitPolicy([0.5], abstain_below=0).answered(confidences).tolist() == [True, True, False, True, True]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="abstain_below is a confidence from 0 to 1; got"):
            ExitPolicy([0.5]).abstaining(wrong)


def test_another_number_of_exits_is_refused():
    with pytest.raises(ValueError, match="confidences of 3 exits; got 4"):
        rule.exits_taken(np.zeros((2, 4)), (0.5, None))
    with pytest.raises(ValueError, match="None where nobody can leave"):
        rule.finite_thresholds([0.5, float("nan")])
