"""What the early-exit runner must do, by simulation on recorded outputs."""

import numpy as np
import torch

from exitwise.exiting.runner import EarlyExitRunner


def assert_decides_as_simulated(model, images, outputs, policy, batch_size, safe_share=0.9):
    """Same exit, class and cost for every image whose confidences stay 1e-5 away from the thresholds."""
    runner = EarlyExitRunner(model, policy)
    results = [runner(batch) for batch in images.split(batch_size)]
    prediction, exit, confidence, macs, answered = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
    safe = away_from_thresholds(outputs.confidences, policy, 1e-5)
    expected = outputs.under(policy)
    assert safe.mean() > safe_share
    np.testing.assert_array_equal(exit[safe], expected.exits[safe])
    np.testing.assert_array_equal(prediction[safe], expected.predictions[safe])
    np.testing.assert_allclose(confidence[safe], expected.confidences[safe], rtol=1e-5, atol=1e-5)
    assert answered.tolist() == policy.answered(confidence).tolist()
    assert macs.tolist() == [runner.exit_macs[k] for k in exit]


def away_from_thresholds(confidences, policy, distance):
    """Which samples' confidences (N, K) stay so far away from every threshold, (N)."""
    limits = np.array([t if t is not None else 9.0 for t in policy.thresholds])
    return (np.abs(confidences[:, :-1] - limits) > distance).all(axis=1)
