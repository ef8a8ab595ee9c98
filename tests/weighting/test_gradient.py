import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
from exitwise.budgets import exit_proportions
from exitwise.errors import UserError
from exitwise.methods.losses.distil import DistilLast, DistilRun
from exitwise.models import MSDNet
from exitwise.weighting.calls import call_with, trainable
from exitwise.weighting.gradient import meta_gradient
from exitwise.weighting.losses import Loss, cross_entropies
from exitwise.weighting.passes import train_pass
from exitwise.weighting.tangents import loss_tangents

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
}


class Dropping(nn.Module):
    """Two exits with dropout before each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3))
        self.second = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.3))
        self.heads = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])

    def forward(self, x):
        x = self.first(x)
        return [self.heads[0](x), self.heads[1](self.second(x))]


def msdnet():
    return MSDNet(
        3,
        blocks=3,
        channels=4,
        growth=4,
        growth_factors=(1, 2),
        bottleneck_factors=(1, 2),
        head_channels=4,
        input_shape=(1, 8, 8),
    )


def case(kind="sgd", model=None, shape=(1, 8, 8), steps=3):
    """A network some steps into training, in float64, with a train and a meta half."""
    model = (model or msdnet()).double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = torch.randn(12, *shape, dtype=torch.float64), torch.randint(3, (12,))
        train_pass(model, x, y).losses.mean().backward()
        optimizer.step()
    halves = [(torch.randn(10, *shape, dtype=torch.float64), torch.randint(3, (10,))) for _ in range(2)]
    return model, optimizer, *halves


@pytest.mark.parametrize("objective", ["per-exit", "share-weighted"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_forward_mode_equals_double_backward(kind, objective):
    model, optimizer, train, meta = case(kind)
    run = train_pass(model, *train, Loss(label_smoothing=0.1))
    weights, shares = torch.rand_like(run.losses), exit_proportions(0.7, 3)
    forward, double = (
        meta_gradient(model, optimizer, run, weights, meta, shares, objective=objective, mode=mode)
        for mode in ("forward", "double-backward")
    )
    assert forward.weights.abs().max() > 1e-8
    torch.testing.assert_close(forward.weights, double.weights, rtol=1e-9, atol=1e-14)
    assert torch.equal(forward.allocation, double.allocation)
    torch.testing.assert_close(forward.loss, double.loss)


@pytest.mark.parametrize("taught", [False, True])
def test_forward_mode_is_exact_where_exits_learn_from_an_answer(taught):
    """The last exit's own, or a teacher's, in which case the last exit learns too."""
    model, optimizer, train, meta = case("adamw")
    teacher = torch.randn(10, 3, dtype=torch.float64) if taught else None
    if taught:
        meta = *meta, torch.randn(10, 3, dtype=torch.float64)
    loss = (DistilRun if taught else DistilLast)(0.4, 3.0)
    run = train_pass(model, *train, loss, teacher=teacher)
    weights, shares = torch.rand_like(run.losses), exit_proportions(0.7, 3)
    forward, double = (
        meta_gradient(model, optimizer, run, weights, meta, shares, mode=mode).weights
        for mode in ("forward", "double-backward")
    )
    plain = meta_gradient(model, optimizer, train_pass(model, *train), weights, meta, shares).weights
    torch.testing.assert_close(forward, double, rtol=1e-9, atol=1e-14)
    assert not torch.allclose(forward, plain, rtol=0.01)


def test_a_teacher_of_the_meta_half_counts():
    model, optimizer, train, meta = case("sgd")
    teachers = torch.randn(3, 10, 3, dtype=torch.float64)
    run = train_pass(model, *train, DistilRun(0.4), teacher=teachers[0])
    weights, shares = torch.rand_like(run.losses), exit_proportions(0.7, 3)
    one, other = (meta_gradient(model, optimizer, run, weights, (*meta, each), shares) for each in teachers[1:])
    assert not torch.allclose(one.weights, other.weights, rtol=0.01)
    assert one.loss != other.loss


@pytest.mark.parametrize("objective", ["per-exit", "share-weighted"])
def test_equals_differences_of_an_independent_meta_loss(objective):
    model, optimizer, train, meta = case("sgd")
    run = train_pass(model, *train)
    weights, shares = torch.rand_like(run.losses), exit_proportions(0.7, 3)
    result = meta_gradient(model, optimizer, run, weights, meta, shares, objective=objective)

    def at(weights):
        loss, _ = reference.meta_loss_after_step(model, optimizer, train, meta, weights, shares, objective)
        return float(loss.detach())

    assert float(result.loss) == pytest.approx(at(weights), rel=1e-12)
    for b, k in ((0, 0), (3, 1), (9, 2)):
        nudge = torch.zeros_like(weights)
        nudge[b, k] = 1e-5
        slope = (at(weights + nudge) - at(weights - nudge)) / 2e-5
        assert float(result.weights[b, k]) == pytest.approx(slope, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("mode", ["forward", "double-backward"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nothing_is_touched_bit_for_bit(kind, mode):
    model, optimizer, train, meta = case(kind)
    run = train_pass(model, *train)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    meta_gradient(model, optimizer, run, torch.ones_like(run.losses), meta, [0.5, 0.3, 0.2], mode=mode)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    for param, grad in zip(model.parameters(), grads, strict=True):
        assert (param.grad is None) == (grad is None)
        assert grad is None or torch.equal(param.grad, grad)
    run.losses.sum().backward()  # the graph is still there for the real step


def test_dropout_masks_are_replayed():
    model, optimizer, train, meta = case("sgd", Dropping(), shape=(6,))
    run = train_pass(model, *train)
    weights = torch.rand_like(run.losses)
    results = []
    for mode in ("forward", "double-backward"):
        torch.manual_seed(5)  # the meta pass draws its own masks
        results.append(meta_gradient(model, optimizer, run, weights, meta, [0.6, 0.4], mode=mode).weights)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-14)


def test_an_exit_without_meta_samples_is_no_error():
    model, optimizer, train, meta = case("sgd")
    run = train_pass(model, *train)
    result = meta_gradient(model, optimizer, run, torch.ones_like(run.losses), meta, [1.0, 0.0, 0.0])
    assert set(result.allocation.tolist()) == {0}
    assert torch.isfinite(result.weights).all()
    assert result.weights[:, 0].abs().max() > 0


def test_frozen_parameters_take_no_part():
    model, optimizer, train, meta = case("sgd")
    for param in model.stages[0].parameters():
        param.requires_grad_(False)
    run = train_pass(model, *train)
    weights = torch.rand_like(run.losses)
    forward, double = (
        meta_gradient(model, optimizer, run, weights, meta, [0.4, 0.3, 0.3], mode=mode).weights
        for mode in ("forward", "double-backward")
    )
    torch.testing.assert_close(forward, double, rtol=1e-9, atol=1e-14)
    assert forward[:, 0].abs().max() == 0  # nothing that trains lies before exit 1


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0.05), (torch.float64, 1e-5)])
def test_finite_differences_are_as_accurate_as_documented(dtype, error):
    model, optimizer, train, meta = case("sgd")
    model.to(dtype)
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
    run = train_pass(model, train[0].to(dtype), train[1])
    weights, meta = torch.rand_like(run.losses), (meta[0].to(dtype), meta[1])
    exact, approximate = (
        meta_gradient(model, optimizer, run, weights, meta, [0.5, 0.3, 0.2], mode=mode).weights
        for mode in ("forward", "finite-difference")
    )
    assert (approximate - exact).norm() < error * exact.norm()


@pytest.mark.parametrize("mode", ["forward", "double-backward", "finite-difference"])
def test_loss_tangents_agree_with_differences(mode):
    model, _, train, _ = case("sgd")
    run = train_pass(model, *train)
    params = trainable(model)
    tangents = {name: torch.randn_like(param) for name, param in params.items()}

    def losses(step):
        moved = {name: param + step * tangents[name] for name, param in params.items()}
        return cross_entropies(call_with(model, moved, run.inputs), run.targets)

    expected = (losses(1e-7) - losses(-1e-7)) / 2e-7
    torch.testing.assert_close(loss_tangents(model, params, tangents, run, mode), expected, rtol=1e-4, atol=1e-4)


def test_finite_differences_of_no_direction_are_zero():
    model, _, train, _ = case("sgd")
    params = trainable(model)
    nowhere = {name: torch.zeros_like(param) for name, param in params.items()}
    tangents = loss_tangents(model, params, nowhere, train_pass(model, *train), "finite-difference")
    assert torch.equal(tangents, torch.zeros_like(tangents))


def test_finite_differences_refuse_half_precision():
    model, _, train, _ = case("sgd")
    model.bfloat16()
    run = train_pass(model, train[0].bfloat16(), train[1])
    with pytest.raises(ValueError, match=r"finite differences need float32 or float64; got torch\.bfloat16"):
        loss_tangents(model, trainable(model), trainable(model), run, "finite-difference")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        return [self.heads[0](x[:, 0]), self.heads[1](y.mean(dim=1))]


def test_attention_has_a_forward_mode():
    """The network keeps the fast kernel; the forward-mode pass and the oracle take the plain one."""
    model, optimizer, train, meta = case("adamw", Attention(), shape=(5, 8))
    weights, shares = torch.rand(10, 2, dtype=torch.float64), [0.6, 0.4]
    forward = meta_gradient(model, optimizer, train_pass(model, *train), weights, meta, shares).weights
    with sdpa_kernel(SDPBackend.MATH):
        run = train_pass(model, *train)
        double = meta_gradient(model, optimizer, run, weights, meta, shares, mode="double-backward").weights
    torch.testing.assert_close(forward, double, rtol=1e-8, atol=1e-13)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WithoutForwardMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return [self.head(x), Doubling.apply(self.head(x))]


def test_an_operator_without_forward_mode_is_named_with_what_to_do():
    model, optimizer, train, meta = case("sgd", WithoutForwardMode(), shape=(6,))
    run = train_pass(model, *train)
    ones = torch.ones_like(run.losses)
    with pytest.raises(ValueError, match=r"operator without a rule for it: .*mode 'double-backward' or 'finite"):
        meta_gradient(model, optimizer, run, ones, meta, [0.6, 0.4])
    assert meta_gradient(model, optimizer, run, ones, meta, [0.6, 0.4], mode="finite-difference").weights.any()


def test_wrong_shapes_are_named():
    model, optimizer, train, meta = case("sgd", steps=0)
    run = train_pass(model, *train)
    ones = torch.ones_like(run.losses)
    with pytest.raises(ValueError, match=r"expected weights of shape \(10, 3\); got \(10, 1\)"):
        meta_gradient(model, optimizer, run, ones[:, :1], meta, [0.4, 0.3, 0.3])
    with pytest.raises(ValueError, match="expected 3 exit proportions, one per exit; got 2"):
        meta_gradient(model, optimizer, run, ones, meta, [0.5, 0.5])
    with pytest.raises(ValueError, match="expected a model that returns a list of logits"):
        train_pass(nn.Flatten(), *train)
    with pytest.raises(ValueError, match="the model has none"):
        meta_gradient(model.requires_grad_(False), optimizer, run, ones, meta, [0.4, 0.3, 0.3])


def test_unknown_mode():
    model, optimizer, train, meta = case("sgd", steps=0)
    run = train_pass(model, *train)
    with pytest.raises(ValueError, match="forward, double-backward, finite-difference; got 'reverse'"):
        meta_gradient(model, optimizer, run, torch.ones_like(run.losses), meta, [0.4, 0.3, 0.3], mode="reverse")


@pytest.mark.parametrize("mode", ["forward", "double-backward", "finite-difference"])
def test_a_layer_under_two_names_is_refused_and_shared_parameters_are_not(mode):
    shared = Dropping()
    shared.heads[1].weight = shared.heads[0].weight
    model, optimizer, train, meta = case("sgd", shared, shape=(6,))
    run = train_pass(model, *train)
    meta_gradient(model, optimizer, run, torch.ones_like(run.losses), meta, [0.5, 0.5], mode=mode)
    assert isinstance(model.heads[0].weight, nn.Parameter)
    model.heads[1] = model.heads[0]
    run = train_pass(model, *train)
    with pytest.raises(ValueError, match=r"a layer stands in the network as 'heads.0' and as 'heads.1': let two"):
        meta_gradient(model, optimizer, run, torch.ones_like(run.losses), meta, [0.5, 0.5], mode=mode)
    assert isinstance(model.heads[0].weight, nn.Parameter)


class Kinked(torch.nn.Module):
    """Has an operator without a second derivative."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

    def forward(self, x):
        logits = self.head(torch.nn.functional.hardsigmoid(self.body(x)))
        return [logits, 2 * logits]


def test_an_operator_without_a_second_derivative_is_told():
    model = Kinked()
    inputs, targets = torch.randn(6, 8), torch.arange(6) % 3
    forward = train_pass(model, inputs[:3], targets[:3])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    meta = inputs[3:], targets[3:]
    with pytest.raises(UserError, match=r"^expected operators that can .* twice; derivative for aten::hardsig[^\n]*$"):
        meta_gradient(model, optimizer, forward, torch.ones(3, 2), meta, [0.5, 0.5], mode="double-backward")
    result = meta_gradient(model, optimizer, forward, torch.ones(3, 2), meta, [0.5, 0.5])
    assert torch.isfinite(result.weights).all()
