"""The shared step against a chain of look-aheads through copied networks, by double backward."""

import copy

import pytest
import torch

import reference
from exitwise.methods import create_method
from exitwise.methods.losses.distil import DistilRun
from exitwise.models import MSDNet
from exitwise.training.step import half_batches, half_step
from exitwise.weighting.losses import Loss

SIZES = {"channels": 4, "growth": 4, "growth_factors": (1, 2), "bottleneck_factors": (1, 2), "head_channels": 4}
SHARES = [0.5, 0.3, 0.2]


def start(kind="sgd", **options):
    torch.manual_seed(0)
    model = MSDNet(3, blocks=3, input_shape=(1, 8, 8), **SIZES).double()
    method = create_method("meta-weighted-shared", proportions=SHARES, hidden=8, zero_init=False, lr=0.01, **options)
    method.network.double()
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, dampening=0.1, weight_decay=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    return model, optimizer, method


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(14, 1, 8, 8, generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (14,), generator=generator)


@pytest.mark.parametrize("objective", ["per-exit", "share-weighted"])
def test_equals_a_chain_of_look_aheads(objective):
    """SGD without dampening, as the oracle's; constant learning rate."""
    model, optimizer, method = start(objective=objective)
    optimizer.param_groups[0]["dampening"] = 0.0
    before, previous = None, None
    for index, batch in enumerate(batches(3)):
        for train, meta in half_batches(*batch):
            expected = None
            if before is not None:
                old_model, old_optimizer, old_network = before
                losses, confidences = reference.losses_and_confidences(copy.deepcopy(old_model), *previous)
                keys = ("loss", "exits", 0.8)
                weights = reference.wpn_weights(old_network.layers, losses.detach(), confidences, *keys)
                loss, _ = reference.meta_loss_after_step(
                    old_model, old_optimizer, previous, train, weights, SHARES, objective
                )
                expected = torch.autograd.grad(loss, list(old_network.parameters()))
            network_before = copy.deepcopy(method.network)
            model_before, optimizer_before = copy.deepcopy((model, optimizer))
            step = half_step(model, optimizer, method, train, meta, index)
            if expected is None:
                assert step.meta_loss is None
            else:
                torch.testing.assert_close(step.meta_loss, loss.detach(), rtol=1e-9, atol=1e-12)
                for param, gradient in zip(method.network.parameters(), expected, strict=True):
                    torch.testing.assert_close(param.grad, gradient, rtol=1e-7, atol=1e-12)
                assert not torch.equal(network_before.layers[0].weight, method.network.layers[0].weight)
            before, previous = (model_before, optimizer_before, copy.deepcopy(method.network)), train


@pytest.mark.parametrize(("kind", "taught"), [("sgd", False), ("adamw", False), ("adamw", True)])
def test_the_three_modes_agree(kind, taught):
    gradients = {}
    for mode in ("forward", "double-backward", "finite-difference"):
        model, optimizer, method = start(kind, mode=mode)
        loss = DistilRun(0.5, label_smoothing=0.1) if taught else Loss(label_smoothing=0.1)
        for index, batch in enumerate(batches(2)):
            teacher = batch[0][:, 0, 0, :3] if taught else None
            for halves in half_batches(*batch, teacher):
                half_step(model, optimizer, method, *halves, index, loss)
        gradients[mode] = method.network.layers[0].weight.grad
    torch.testing.assert_close(gradients["double-backward"], gradients["forward"], rtol=1e-7, atol=1e-13)
    torch.testing.assert_close(gradients["finite-difference"], gradients["forward"], rtol=1e-2, atol=1e-9)


def test_the_interval_says_which_half_steps_are_judged():
    model, optimizer, method = start(meta_interval=2)
    judged = []
    for index, batch in enumerate(batches(4)):
        for halves in half_batches(*batch):
            judged.append(half_step(model, optimizer, method, *halves, index).meta_loss is not None)
    # Half steps of batches 0 and 2 are looked ahead from, and judged by the half step that follows.
    assert judged == [False, True, True, False, False, True, True, False]
