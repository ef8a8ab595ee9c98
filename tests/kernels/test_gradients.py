"""Identities with another backward pass, in reverse, twice in reverse, and in forward mode."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from exitwise.kernels.gradients import in_part, no_changed_gradients, scaled, unchanged_gradients

X = torch.randn(3, 4, 2, dtype=torch.float64)
HALF = torch.tensor([1, 1, 0, 0], dtype=torch.float64)[:, None].expand(3, 4, 2)
RULES = {
    "scaled": (lambda x: scaled(x, 0.3), 0.3 * torch.ones_like(X)),
    "cut": (lambda x: scaled(x, 0), torch.zeros_like(X)),
    "in half of the channels": (lambda x: in_part(x, 0.5), HALF),
    "in one channel at least": (lambda x: in_part(x, 0.01, -1), torch.tensor([1, 0], dtype=X.dtype).expand(3, 4, 2)),
}


@pytest.mark.parametrize("name", RULES)
def test_gradient_and_tangent_are_multiplied_alike(name):
    rule, factor = RULES[name]
    x, cotangent = X.clone().requires_grad_(), torch.randn_like(X).requires_grad_()
    y = rule(x)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(((y + 2 * x) * cotangent).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, (factor + 2) * cotangent)
    (twice,) = torch.autograd.grad((gradient**2).sum() / 2, cotangent)
    torch.testing.assert_close(twice, (factor + 2) ** 2 * cotangent)
    with forward_ad.dual_level():
        tangent = torch.randn_like(X)
        primal, moved = forward_ad.unpack_dual(rule(forward_ad.make_dual(X, tangent)))
        torch.testing.assert_close((primal, moved), (X, factor * tangent))


def test_an_in_place_operator_may_follow():
    x = X.clone().requires_grad_()
    scaled(3 * x, 0.5).relu_().sum().backward()
    torch.testing.assert_close(x.grad, 1.5 * (X > 0).double())


def test_what_changes_nothing_adds_nothing():
    x = X.clone().requires_grad_()
    assert scaled(x, 1.0) is x
    assert in_part(x, 1.0) is x
    whole = torch.arange(3)
    assert scaled(whole, 0.5) is whole


def test_rules_can_be_left_out_before_and_after():
    x = X.clone().requires_grad_()
    y = scaled(x, 0.5).sum()
    (changed,) = torch.autograd.grad(y, x, retain_graph=True)
    with unchanged_gradients():
        (plain,) = torch.autograd.grad(y, x, retain_graph=True)
        assert scaled(x, 0.5) is x
    (again,) = torch.autograd.grad(y, x)
    assert torch.equal(changed, again)
    assert torch.equal(plain, torch.ones_like(x))


def test_differences_refuse_them():
    with no_changed_gradients(), pytest.raises(ValueError, match="finite differences do not see a changed backward"):
        scaled(X, 0.5)
