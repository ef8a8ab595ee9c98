import copy

import pytest
import torch

from exitwise.weighting.lookahead import look_ahead

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
}


def make(kind, steps):
    """Two parameters, in groups of different learning rates, after some real steps."""
    params = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    optimizer = OPTIMIZERS[kind]([{"params": [params["a"]]}, {"params": [params["b"]], "lr": 0.03}])
    for _ in range(steps):
        for param in params.values():
            param.grad = torch.randn_like(param)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_the_optimizers_own_step_and_changes_nothing(kind, steps):
    params, optimizer = make(kind, steps)
    grads = {name: torch.randn_like(param) for name, param in params.items()}
    before = copy.deepcopy((params, optimizer.state_dict()))
    ahead = look_ahead(optimizer, params, grads)
    torch.testing.assert_close(copy.deepcopy((params, optimizer.state_dict())), before, rtol=0, atol=0)

    for name, param in params.items():
        param.grad = grads[name]
    optimizer.step()
    for name, param in params.items():
        torch.testing.assert_close(ahead.params[name], param.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gain_is_minus_the_slope(kind, steps):
    params, optimizer = make(kind, steps)
    grads = {name: torch.randn_like(param) for name, param in params.items()}
    ahead = look_ahead(optimizer, params, grads)
    step = 1e-6
    for name in params:
        up, down = ({**grads, name: grads[name] + sign * step} for sign in (1, -1))
        slope = look_ahead(optimizer, params, up).params[name] - look_ahead(optimizer, params, down).params[name]
        expected = -slope / (2 * step)
        gain = torch.as_tensor(ahead.gain[name], dtype=torch.float64).expand_as(expected)
        torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_is_differentiable_at_a_zero_gradient(kind):
    params, optimizer = make(kind, 0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    grad = torch.zeros_like(params["a"], requires_grad=True)
    ahead = look_ahead(optimizer, {"a": params["a"]}, {"a": grad})
    (slope,) = torch.autograd.grad(ahead.params["a"].sum(), grad)
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(-slope, ahead.gain["a"])


def test_parameters_without_gradient_or_optimizer_stay():
    params, optimizer = make("momentum", 2)
    stranger = torch.ones(2, requires_grad=True)
    ahead = look_ahead(optimizer, {**params, "c": stranger}, {"a": torch.ones(3, 2), "b": None, "c": torch.ones(2)})
    assert ahead.params["b"] is params["b"]
    assert ahead.params["c"] is stranger
    assert set(ahead.gain) == {"a"}


class Renamed(torch.optim.SGD):
    """Steps as SGD does."""


class Clipping(torch.optim.SGD):
    """Does not."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([param for group in self.param_groups for param in group["params"]], 1.0)
        return super().step(closure)


def test_a_subclass_that_steps_as_its_base_has_its_look_ahead():
    param = torch.ones(2, requires_grad=True)
    ahead = look_ahead(Renamed([param], lr=0.5), {"a": param}, {"a": torch.ones(2)})
    assert ahead.params["a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: torch.optim.RMSprop(p), "SGD, Adam and AdamW; got RMSprop"),
        (lambda p: Clipping(p, lr=1.0), "SGD, Adam and AdamW; got Clipping"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad=False"),
        (lambda p: torch.optim.SGD(p, lr=1.0, maximize=True), "maximize=False"),
    ],
)
def test_optimizers_without_look_ahead_are_refused(build, message):
    param = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        look_ahead(build([param]), {"a": param}, {"a": torch.ones(2)})
