"""What channels-last images on a CPU are computed by, against torch's own operators."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exitwise.kernels.channels_last import ChannelsLast


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def channels_last(*shape):
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 1, 4), (1, 6, 4, 4)])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("input",)])
def test_a_1x1_convolution_is_the_same_as_a_product(bias, shape, frozen):
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 7, 1, bias=bias).double()
    x, gradient = channels_last(*shape), channels_last(shape[0], 10, *shape[2:])[:, :7]
    layer.weight.requires_grad_("weight" not in frozen)
    results = []
    for mode in (nullcontext(), ChannelsLast()):
        layer.zero_grad()
        inputs = x.clone().requires_grad_("input" not in frozen)
        with mode, Operators() as operators:
            output = layer(inputs)
        assert ("convolution" in operators.names) == (not isinstance(mode, ChannelsLast))
        kept = output.detach().clone()
        if output.requires_grad:
            output.mul_(2)
            output.backward(gradient)
        results.append([kept, inputs.grad, *(param.grad for param in layer.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"padding": 1}, {"kernel_size": 3}, {"dilation": 2}])
def test_other_convolutions_are_torchs(options):
    layer = nn.Conv2d(4, 4, **{"kernel_size": 1, **options}).double()
    x = channels_last(2, 4, 4, 4)
    with ChannelsLast(), Operators() as operators:
        output = layer(x)
    assert "convolution" in operators.names
    assert torch.equal(output, layer(x))


@pytest.mark.parametrize(("weight", "bias"), [((5, 3, 1, 1), 5), ((0, 4, 1, 1), 0), ((5, 4, 1, 1), 1)])
def test_errors_of_convolutions_are_torchs(weight, bias):
    with ChannelsLast(), pytest.raises(RuntimeError, match=r"weight|bias"):
        F.conv2d(channels_last(2, 4, 3, 3).float(), torch.ones(weight), torch.ones(bias))


def test_under_autocast_convolutions_are_torchs():
    x = channels_last(2, 4, 4, 4).float()
    with ChannelsLast(), torch.autocast("cpu", torch.bfloat16):
        assert nn.Conv2d(4, 4, 1)(x).dtype == torch.bfloat16


class Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return None


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)])
def test_no_gradient_is_no_gradient(layer):
    x = channels_last(2, 4, 3, 3).float().requires_grad_()
    with ChannelsLast():
        Stop.apply(layer(x)).sum().backward()
    assert x.grad is None or not x.grad.any()


def test_gradients_of_weight_and_bias_are_tensors_of_their_own():
    norm = nn.BatchNorm2d(4)
    with ChannelsLast():
        output = norm(channels_last(2, 4, 3, 3).float())
    weight, bias = torch.autograd.grad(output.square().sum(), [norm.weight, norm.bias])
    assert weight.untyped_storage().data_ptr() != bias.untyped_storage().data_ptr()


def test_relu_behind_a_concatenation_gets_dense_gradients():
    torch.manual_seed(0)
    x = channels_last(2, 6, 4, 4).requires_grad_()
    strides, results = [], []
    for mode in (nullcontext(), ChannelsLast()):
        with mode:
            output = F.relu(x)
            output.grad_fn.register_prehook(lambda gradients: strides.append(gradients[0].stride()))
            torch.cat([output, channels_last(2, 20, 4, 4)], dim=1).square().sum().backward()
        results.append(x.grad)
        x.grad = None
    assert strides[1] == x.stride() != strides[0]
    assert torch.equal(*results)
