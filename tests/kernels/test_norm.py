"""Folded BatchNorm against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exitwise.kernels.channels_last import ChannelsLast
from exitwise.kernels.norm import fold_norm, folds, jacobian_product, normalized
from exitwise.weighting.tangents import check_mode

SHAPES = [(4, 6, 5, 5), (2, 16, 8, 4), (3, 1, 6, 6), (5, 7, 1, 3)]


def channels_last(shape, offset=0.0, dtype=torch.float64):
    return (torch.randn(shape, dtype=dtype) + offset).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_gradients_and_running_statistics_equal_torchs(shape, affine):
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(shape[1], affine=affine).double()
    ours = nn.BatchNorm2d(shape[1], affine=affine).double()
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours.load_state_dict(theirs.state_dict())
    x, gradient = channels_last(shape, offset=3.0), channels_last(shape)
    results = []
    for norm, mode in ((theirs, None), (ours, ChannelsLast())):
        inputs = x.clone().requires_grad_()
        for _ in range(2):
            if mode is None:
                output = norm(inputs)
            else:
                with mode:
                    output = norm(inputs)
        output = F.relu(output, inplace=True)
        output.backward(gradient)
        gradients = [inputs.grad, *(param.grad for param in norm.parameters())]
        results.append([output.detach(), *gradients, norm.running_mean, norm.running_var])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_a_mean_far_from_zero_costs_no_digits():
    x = channels_last((8, 6, 8, 8), offset=1000.0, dtype=torch.float32)
    output = normalized(x, fold_norm(x, None, None, 1e-5)[0])
    exact = F.batch_norm(x.double(), None, None, training=True)
    own = F.batch_norm(x, None, None, training=True)
    assert (output - exact).abs().max() <= 2 * (own - exact).abs().max()


@pytest.mark.parametrize("affine", [True, False])
def test_tangents_equal_torchs(affine):
    torch.manual_seed(0)
    x, dx = channels_last((3, 4, 5, 5), offset=3.0), channels_last((3, 4, 5, 5))
    weight, dw, bias, db = torch.randn(4, 4).double() if affine else [None] * 4

    def norm(x, *parts):
        return F.batch_norm(x, None, None, *parts, training=True)

    primals, tangents = ((x, weight, bias), (dx, dw, db)) if affine else ((x,), (dx,))
    _, expected = torch.func.jvp(norm, primals, tangents)
    norm, _ = fold_norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(jacobian_product(dx, x, norm, dw, db)[0], expected)


def test_only_channels_last_images_on_a_cpu_are_folded():
    assert folds(channels_last((2, 3, 4, 4)))
    assert not folds(torch.randn(2, 3, 4, 4))
    assert not folds(torch.randn(2, 3))
    assert not folds(channels_last((2, 3, 4, 4)).bfloat16())
    norm = nn.BatchNorm2d(3).eval()
    x = channels_last((2, 3, 4, 4), dtype=torch.float32)
    with ChannelsLast():
        assert torch.equal(norm(x), norm(x))


def test_a_second_derivative_is_refused():
    with ChannelsLast(), ChannelsLast(), pytest.raises(ValueError, match="cannot be differentiated twice"):
        check_mode("double-backward")
    check_mode("double-backward")
