import pytest
import torch
import torch.nn.functional as F

from exitwise.exiting.temperatures import bound_of, fit_temperatures


def test_temperatures_make_the_targets_likeliest():
    targets = torch.randint(5, (400,))
    true = torch.randn(400, 2, 5) + 2 * F.one_hot(targets, 5)[:, None]
    scales = (3.0, 0.4)
    logits = true * torch.tensor(scales)[None, :, None]
    fitted = fit_temperatures(logits.numpy(), targets.numpy())
    for k in range(2):
        losses = {
            t: F.cross_entropy(logits[:, k].double() / t, targets).item()
            for t in [fitted[k] * 0.98, fitted[k], fitted[k] * 1.02]
        }
        assert min(losses, key=losses.get) == fitted[k]
    assert fitted[0] / fitted[1] == pytest.approx(scales[0] / scales[1], rel=0.15)


def test_bounds_are_recognised():
    assert [bound_of(t) for t in (0.0502, 1.0, 19.9)] == [0.05, None, 20.0]


def test_no_samples():
    with pytest.raises(ValueError, match="temperatures need at least one sample"):
        fit_temperatures(torch.randn(0, 2, 3), torch.zeros(0, dtype=torch.int64))
