"""The convolutions that a wide network starts with."""

import torch
from torch import nn

from exitwise import create_model
from exitwise.models.wide import cosine_filters


def test_cosine_filters_are_an_orthonormal_basis_smoothest_first():
    filters = cosine_filters((3, 3, 3)).double()
    patches = filters.flatten(1)
    torch.testing.assert_close(patches @ patches.T, torch.eye(27, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters[0], torch.full((3, 3, 3), 27**-0.5, dtype=torch.float64), atol=1e-6, rtol=0)
    for axis, filter in enumerate((2, 1, 0), start=1):  # an edge across, an edge down, a difference of colours
        assert filters[axis].std(dim=filter).max() > 0.1
        assert max(filters[axis].std(dim=other).max() for other in range(3) if other != filter) < 1e-6


def test_convolutions_that_start_as_identities_hand_on_what_they_get():
    torch.manual_seed(0)
    model = create_model("wide_cifar", input_shape=(3, 8, 8)).eval()
    first, *others = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(first.weight[:8], -first.weight[8:])
    for convolution in others:
        images = torch.rand(1, convolution.in_channels, 4, 4)
        down, across = convolution.stride
        torch.testing.assert_close(convolution(images)[:, : convolution.in_channels], images[..., ::down, ::across])


def test_other_wide_networks_start_by_chance():
    model = create_model("wide_grey")
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert not torch.equal(first.weight[:4], -first.weight[4:])
