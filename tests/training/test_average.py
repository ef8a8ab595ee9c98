"""The average of weights beside a sum by hand."""

import torch
from torch import nn

from exitwise.training.average import WeightAverage


def test_it_follows_the_weights_by_the_formula():
    network = nn.BatchNorm1d(2)
    average = WeightAverage(network, 0.7)
    wanted = torch.ones(2)
    for step in range(1, 6):
        with torch.no_grad():
            network.weight.fill_(step)
        network.num_batches_tracked.fill_(step)
        average.update()
        kept = min(0.7, 1 - (1 + step) ** (-2 / 3))
        wanted = kept * wanted + (1 - kept) * step
    with average.in_place():
        torch.testing.assert_close(network.weight.detach(), wanted)
        assert network.num_batches_tracked == 5
    assert network.weight.tolist() == [5, 5]
    average.adopt()
    torch.testing.assert_close(network.weight.detach(), wanted)
