"""What the early-exit runner must do, by simulation on recorded outputs."""

import torch

from exitwise.exiting.runner import EarlyExitRunner


def assert_decides_as_simulated(model, images, outputs, policy, batch_size, safe_share=0.9):
    """Same exit, class and cost for every image whose confidences stay 1e-5 away from the thresholds."""
    runner = EarlyExitRunner(model, policy)
    results = [runner(batch) for batch in images.split(batch_size)]
    prediction, exit, confidence, macs = (torch.cat(parts) for parts in zip(*results, strict=True))
    margins = torch.tensor([t if t is not None else 9.0 for t in policy.thresholds]) - outputs.confidences[:, :-1]
    safe = margins.abs().min(dim=1).values > 1e-5
    expected = policy.exit_of(outputs.confidences)
    assert safe.float().mean() > safe_share
    assert torch.equal(exit[safe], expected[safe])
    assert torch.equal(prediction[safe], outputs.predictions.gather(1, expected[:, None])[safe, 0])
    torch.testing.assert_close(confidence[safe], outputs.confidences.gather(1, expected[:, None])[safe, 0])
    assert macs.tolist() == [runner.exit_macs[k] for k in exit]
