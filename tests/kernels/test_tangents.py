"""The cheaper forward-mode rules against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from exitwise.kernels.channels_last import ChannelsLast
from exitwise.kernels.tangents import KeptOutputs, TangentRules


class Branches(nn.Module):
    """Two branches on the input, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class CatByAxis(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], axis=1)  # type: ignore[call-overload]


def twice(x: Tensor) -> Tensor:
    return x * 2


scripted_twice = torch.jit.script(twice)  # of which no torch function mode is told


class UsedBeforeItsReLU(nn.Module):
    def __init__(self, use: Callable[[Tensor], Tensor] = twice) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.use(y)
        return F.relu(y, inplace=True) + z


class WithoutGradients(nn.Module):
    """A part of it is a constant to backward passes, convolution and all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.constant = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        with torch.no_grad():
            scale = F.relu(self.constant(y), inplace=True)
        return y * scale


def conv(channels_in: int, channels_out: int, **options: int | bool | str) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)  # type: ignore[arg-type]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: conv(3, 5),
    "without bias": lambda: nn.Sequential(conv(3, 5, bias=False), nn.Tanh(), conv(5, 2, bias=False)),
    "groups, stride, reflected padding": lambda: conv(3, 6, groups=3, stride=2, padding_mode="reflect"),
    "batch norm": lambda: nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.Tanh(), conv(4, 2)),
    "batch norm without affine": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), nn.Tanh()),
    "batch norm in eval mode": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4).eval(), conv(4, 2)),
    "batch norm and in-place ReLU": lambda: nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(inplace=True), conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 2)
    ),
    "batch norm and ReLU": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)),
    "batch norm used before its in-place ReLU": lambda: nn.Sequential(conv(3, 3), UsedBeforeItsReLU(), conv(3, 2)),
    "batch norm used by a scripted function": lambda: nn.Sequential(
        conv(3, 3), UsedBeforeItsReLU(scripted_twice), conv(3, 2)
    ),
    "batch norm of the input": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Tanh()),
    "in-place ReLU on a kept output": lambda: nn.Sequential(conv(3, 4), nn.ReLU(inplace=True), conv(4, 2)),
    "concatenation": lambda: nn.Sequential(Branches(conv(3, 2), nn.Tanh()), conv(5, 2)),
    "concatenation of what has no tangent": lambda: nn.Sequential(Branches(nn.Tanh(), nn.Identity()), conv(6, 2)),
    "concatenation by axis": lambda: nn.Sequential(conv(3, 2), CatByAxis(), conv(4, 2)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 7), nn.GELU(), nn.Linear(7, 4), nn.BatchNorm1d(4)),
    "convolution along a line": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.Tanh()),
}
FOLDED: dict[str, Callable[[], nn.Module]] = {
    "two norms of one width": lambda: nn.Sequential(
        nn.BatchNorm2d(3), conv(3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), conv(3, 4), nn.BatchNorm2d(4)
    ),
    "norm used before its in-place ReLU": lambda: nn.Sequential(conv(3, 3), UsedBeforeItsReLU(), conv(3, 2)),
    "norm used by a scripted function": lambda: nn.Sequential(
        conv(3, 3), UsedBeforeItsReLU(scripted_twice), conv(3, 2)
    ),
    "norm without affine": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), nn.Tanh(), conv(4, 2)),
    "one norm in eval mode": lambda: nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4).eval(), conv(4, 4), nn.BatchNorm2d(4), nn.Tanh()
    ),
}
FROZEN = {"nothing": (), "weights": ("weight",), "biases": ("bias",)}


def tangent(model: nn.Module, directions: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with forward_ad.dual_level():
        params = {name: param.detach() for name, param in model.named_parameters()}
        duals = {name: forward_ad.make_dual(params[name], d) for name, d in directions.items()}
        dual = forward_ad.unpack_dual(functional_call(model, {**params, **duals, **buffers}, (x,)))
        return dual.primal, torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("kind", NETWORKS)
def test_rules_equal_torchs_own_forward_mode(kind: str, frozen: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[kind]().double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    directions = {
        name: torch.randn_like(param) for name, param in model.named_parameters() if not name.endswith(FROZEN[frozen])
    }
    expected = tangent(model, directions, x)
    with TangentRules():
        anew = tangent(model, directions, x)
    with KeptOutputs() as kept:
        model(x)
    with TangentRules(kept):
        reused = tangent(model, directions, x)
    for result in (anew, reused):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(anew[1], reused[1])  # on which resuming bit for bit rests


def test_each_product_is_made_once_and_none_is_made_of_zeros() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8))
    x = torch.randn(4, 3, 6, 6)
    per_layer = []
    for layer, channels in ((model[0], 3), (model[2], 8)):
        with FlopCounterMode(display=False) as alone:
            layer(torch.randn(4, channels, 6, 6))
        per_layer.append(alone.get_total_flops())
    with KeptOutputs() as kept:
        model(x)
    directions = {name: torch.randn_like(param) for name, param in model.named_parameters()}
    with FlopCounterMode(display=False) as counter, TangentRules(kept):
        tangent(model, directions, x)
    assert counter.get_total_flops() == per_layer[0] + 2 * per_layer[1]


def test_an_output_written_to_since_is_computed_anew() -> None:
    with KeptOutputs() as kept:
        F.linear(torch.ones(2, 3), torch.ones(4, 3))
        F.linear(torch.ones(2, 3), torch.ones(4, 3)).relu_()
    first, second = (call.unchanged for call in kept.calls)
    assert first is not None
    assert second is None


@pytest.mark.parametrize("folded", [True, False])
def test_batch_norm_leaves_its_statistics(folded: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), UsedBeforeItsReLU())
    x = torch.randn(4, 3, 2, 2)
    with ChannelsLast() if folded else nullcontext(), KeptOutputs() as kept:
        output = model(x.contiguous(memory_format=torch.channels_last) if folded else x)
    assert [(call.output is None, call.statistics is not None) for call in kept.calls] == [(True, True)] * 2
    with TangentRules(kept):
        tangent(model, {"0.weight": torch.ones(3)}, x)
    output.sum().backward()  # the graph is as it was


@pytest.mark.parametrize("folded", [True, False])
def test_batch_norms_own_errors_stay(folded: bool) -> None:
    x = torch.randn(8, 16, 4, 4).contiguous(memory_format=torch.channels_last if folded else torch.contiguous_format)
    for norm in (nn.BatchNorm2d(3), nn.BatchNorm2d(16, track_running_stats=False)):
        norm.weight = nn.Parameter(torch.ones(3))
        with (
            ChannelsLast() if folded else nullcontext(),
            KeptOutputs(),
            pytest.raises(RuntimeError, match="16 elements"),
        ):
            norm(x)
    with KeptOutputs():
        assert nn.BatchNorm2d(16)(x[:0]).shape == (0, 16, 4, 4)


@pytest.mark.parametrize("folded", [True, False])
def test_what_is_computed_without_gradients_has_no_tangent(folded: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 3), WithoutGradients(), conv(3, 2)).double()
    directions = {name: torch.randn_like(param) for name, param in model.named_parameters()}
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if folded else x
    with ChannelsLast() if folded else nullcontext(), KeptOutputs() as kept:
        output = model(x)
    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, list(model.parameters()), cotangent, allow_unused=True)
    products = [(g * d).sum() for g, d in zip(gradients, directions.values(), strict=True) if g is not None]
    for rules in (TangentRules(kept), TangentRules()):
        with rules:
            _, found = tangent(model, directions, x)
        torch.testing.assert_close((found * cotangent).sum(), torch.stack(products).sum())


def test_running_statistics_stay() -> None:
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    norm.requires_grad_(False)
    with forward_ad.dual_level(), TangentRules():
        norm(forward_ad.make_dual(x, torch.randn_like(x)))
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("kind", FOLDED)
def test_folded_norm_equals_torchs_own_forward_mode(kind: str, frozen: str) -> None:
    torch.manual_seed(0)
    model = FOLDED[kind]().double()
    for param in model.parameters():
        nn.init.normal_(param)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64) + 1
    directions = {
        name: torch.randn_like(param) for name, param in model.named_parameters() if not name.endswith(FROZEN[frozen])
    }
    expected = tangent(model, directions, x)
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with ChannelsLast(), KeptOutputs() as kept:
        model(x)
    with_statistics = sum(call.statistics is not None for call in kept.calls)
    assert with_statistics == sum(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules())
    for rules in (TangentRules(kept), TangentRules()):
        with rules:
            torch.testing.assert_close(tangent(model, directions, x), expected)
