"""Mixup and CutMix: what is mixed, and that learned weights get their exact gradient through soft labels."""

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.budgets import exit_proportions
from exitwise.errors import Interrupted, UserError
from exitwise.methods.losses.by_class import LogitAdjusted
from exitwise.methods.losses.distil import DistilLast
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.mixing import Mixing
from exitwise.training.trainer import Silent
from exitwise.weighting.calls import trainable
from exitwise.weighting.gradient import meta_gradient
from exitwise.weighting.losses import Loss
from exitwise.weighting.passes import train_pass
from exitwise.weighting.tangents import loss_tangents

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
}
LOSSES = {
    "labels": Loss(label_smoothing=0.1),
    "distil-last": DistilLast(0.5),
    "logit-adjusted": LogitAdjusted(class_counts=[1, 2, 5]),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
        self.second = nn.Sequential(nn.Linear(144, 8), nn.Tanh(), nn.Dropout(0.2))
        self.heads = nn.ModuleList([nn.Linear(144, 3), nn.Linear(8, 3)])

    def forward(self, x):
        x = self.first(x)
        return [self.heads[0](x), self.heads[1](self.second(x))]


def halves(size=9):
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(size, 1, 6, 6, **draw), torch.randint(3, (size,), generator=generator)) for _ in range(2)]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0), (0, 1), (0.4, 1)])
def test_images_and_labels_are_mixed_in_the_same_shares(mixup, cutmix):
    images, targets = halves()[0]
    before = images.clone(), np.random.get_state()[1].copy()
    for key in range(20):
        mixed, soft = Mixing(mixup, cutmix, 3, seed=1)((images, targets), key, 0)
        again = Mixing(mixup, cutmix, 3, seed=1)((images, targets), key, 0)
        assert torch.equal(mixed, again[0])
        assert torch.equal(soft, again[1])
        torch.testing.assert_close(soft.sum(1), torch.ones(9))
        assert torch.equal(mixed[8], images[8])  # the odd one
        assert soft[8].tolist() == nn.functional.one_hot(targets[8], 3).tolist()
        own = nn.functional.one_hot(targets[:8], 3)
        shares = [
            (soft[k] - own[7 - k]) @ (own[k] - own[7 - k]).float() / 2 for k in range(8) if targets[k] != targets[7 - k]
        ]
        share = float(shares[0])
        torch.testing.assert_close(torch.stack(shares), torch.full((len(shares),), share))
        blended = images[:8] * share + images[:8].flip(0) * (1 - share)
        if not cutmix:
            torch.testing.assert_close(mixed[:8], blended, rtol=1e-6, atol=1e-6)
        elif not mixup:
            kept = (mixed[:8] == images[:8]).double().mean()
            torch.testing.assert_close(float(kept), share, rtol=1e-6, atol=1e-6)
            assert ((mixed[:8] == images[:8]) | (mixed[:8] == images[:8].flip(0))).all()
    assert torch.equal(images, before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert not torch.equal(mixed, Mixing(mixup, cutmix, 3, seed=2)((images, targets), key, 0)[0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_meta_gradient_through_soft_labels_is_exact(kind, name):
    model = Net().double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train, meta = halves()
    mixed = Mixing(0.4, 1.0, 3, seed=0)(train, 0)
    run = train_pass(model, *mixed, LOSSES[name])
    by_hand = -(mixed[1].double()[:, None] * run.logits.log_softmax(-1)).sum(-1)
    if name == "labels":
        smooth = -run.logits.log_softmax(-1).mean(-1)
        torch.testing.assert_close(run.losses, 0.9 * by_hand + 0.1 * smooth)
    weights, shares = torch.rand_like(run.losses), exit_proportions(0.7, 2)

    def gradient(mode):
        torch.manual_seed(0)  # of the meta pass's dropout
        return meta_gradient(model, optimizer, run, weights, meta, shares, mode=mode)

    forward, double = gradient("forward"), gradient("double-backward")
    assert forward.weights.abs().max() > 1e-8
    torch.testing.assert_close(forward.weights, double.weights, rtol=1e-9, atol=1e-14)
    directions = {key: torch.randn_like(param) for key, param in trainable(model).items()}  # as in the shared step
    ahead, back = (
        loss_tangents(model, trainable(model), directions, run, mode) for mode in ("forward", "double-backward")
    )
    torch.testing.assert_close(ahead, back, rtol=1e-9, atol=1e-12)


class StopAt(Silent):
    def __init__(self, step):
        self.step = step

    def on_step(self, iteration, total, meters):
        if iteration == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_runs_continue_to_the_bit(tmp_path):
    flags = {"method": "meta-weighted-shared", "mixup": 0.2, "cutmix": 1.0, "ema": 0.9, "epochs": 1, "device": "cpu"}
    sizes = {"max_iterations": 2, "batch_size": 62, "wpn_hidden": 8, "test_fraction": 0.8}
    settings = compose("digits", flags={**flags, **sizes})
    whole = ew.train(settings, tmp_path / "whole").run
    with pytest.raises(Interrupted):
        ew.train(settings, tmp_path / "run", StopAt(1))
    again = ew.train(settings, tmp_path / "run").run
    trees = [load_checkpoint(run.checkpoints.latest("last")) for run in (whole, again)]
    for tree in trees:
        tree["method"]["pending"].pop("random")  # checks of shapes draw from Python's generator
        tree.pop("random")
    torch.testing.assert_close(*trees, rtol=0, atol=0)
    assert trees[0]["method"]["pending"]["run"]["targets"].is_floating_point()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distil_from": "other"}, "mixup and distil_from exclude one another: the teacher answers images, not mixed"),
        ({"method": "capability-gated"}, "method capability-gated asks for the one class of each sample"),
        ({"loss": "margin"}, "loss margin asks for the one class of each sample, which mixup leaves none"),
        ({"loss": "class-balanced"}, "loss class-balanced asks for the one class"),
        (
            {"model": "timm/resnet18", "regime": "heads", "pretrained": "hub", "recipe": "digits"},
            "mixup goes with other regimes",
        ),
        ({"data": "mnist1d"}, "mixup is for images; mnist1d has signals"),
    ],
)
def test_what_clashes_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        compose(None, flags={"mixup": 0.2, **flags})
