import pytest
import torch

from exitwise.weighting.network import WeightNetwork
from exitwise.weighting.normalize import uniform_weights, weighted_loss

DIMS = {"exits": (1,), "samples": (0,), "all": (0, 1)}


@pytest.mark.parametrize("inputs", ["loss", "conf", "both"])
@pytest.mark.parametrize("centering", DIMS)
def test_weights_average_to_one_over_the_centred_set_and_stay_in_bounds(inputs, centering):
    network = WeightNetwork(4, hidden=16, layers=2, inputs=inputs, epsilon=0.3, centering=centering)
    weights = network(10 * torch.rand(32, 4), torch.rand(32, 4))
    assert weights.shape == (32, 4)
    torch.testing.assert_close(weights.mean(dim=DIMS[centering]), torch.ones_like(weights.mean(dim=DIMS[centering])))
    assert (weights - 1).abs().max() <= 0.6


def test_inputs_select_what_the_network_sees():
    losses, confidences = torch.rand(8, 3), torch.rand(8, 3)
    for inputs, other_losses, other_confidences in (
        ("loss", losses, torch.rand(8, 3)),
        ("conf", torch.rand(8, 3), confidences),
    ):
        network = WeightNetwork(3, hidden=8, inputs=inputs)
        assert torch.equal(network(losses, confidences), network(other_losses, other_confidences))


def test_losses_get_no_gradient_but_the_network_does():
    network = WeightNetwork(3, hidden=8, inputs="both")
    losses = torch.rand(8, 3, requires_grad=True)
    (network(losses, torch.rand(8, 3)) ** 2).sum().backward()
    assert losses.grad is None
    assert all(param.grad is not None for param in network.parameters())


def test_zero_start_gives_weights_of_exactly_one_and_can_learn():
    network = WeightNetwork(3, hidden=8, zero_init=True)
    weights = network(torch.rand(8, 3), torch.rand(8, 3))
    assert torch.equal(weights, torch.ones(8, 3))
    weights.backward(torch.randn(8, 3))
    assert network.layers[-2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{"inputs": "logits"}, {"centering": "rows"}, {"hidden": 0}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        WeightNetwork(3, **options)


def test_weighted_loss_is_a_sum_of_means():
    losses, weights = torch.rand(6, 2), torch.rand(6, 2)
    expected = sum((weights[:, k] * losses[:, k]).sum() / 6 for k in range(2))
    torch.testing.assert_close(weighted_loss(losses, weights), expected)
    exit_weights = torch.tensor([0.5, 2.0])
    expected = 0.5 * losses[:, 0].mean() + 2 * losses[:, 1].mean()
    torch.testing.assert_close(weighted_loss(losses, uniform_weights(losses, exit_weights)), expected)
