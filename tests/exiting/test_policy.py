"""The exit rule."""

import pytest
import torch

from exitwise.exiting.policy import ExitPolicy


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


def test_what_is_not_a_number_stays():
    assert not ExitPolicy([0.0]).leaves_alone(torch.tensor([torch.nan]), 0)
