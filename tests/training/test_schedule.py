"""How learning rates go, when a training ends for want of progress, and which parameters get which rate."""

import math

import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.errors import UserError
from exitwise.runs.build import build_model, build_optimizer
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.schedule import scheduler

EXPECTED = {
    "cosine": lambda u: 0.5 * (1 + math.cos(math.pi * u)),
    "linear": lambda u: 1 - u,
    "step": lambda u: 1 if u < 0.5 else 0.1 if u < 0.75 else 0.01,
    "constant": lambda u: 1,
}


@pytest.mark.parametrize("warmup", [0, 0.2])
@pytest.mark.parametrize("course", EXPECTED)
def test_learning_rates(course, warmup):
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": params[:1], "lr": 0.4}, {"params": params[1:], "lr": 0.2, "lr_scale": 0.5}])
    schedule, total = scheduler(optimizer, course, 40, warmup), 40
    rising = round(warmup * total)
    for t in range(total):
        schedule.step_update(t)
        factor = t / rising if t < rising else EXPECTED[course]((t - rising) / (total - rising))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4 * factor, 0.1 * factor])


def test_layers_and_vectors():
    settings = compose("digits", flags={"layer_decay": 0.5, "decay_vectors": False, "head_lr_factor": 3.0, "lr": 0.1})
    model = build_model(settings, 10)
    optimizer = build_optimizer(settings, model)
    found = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    assert len(found) == len(list(model.parameters()))
    heads = {id(param) for stage in model.stages for param in stage.head_parameters()}
    scales = []
    for param in model.parameters():
        group = found[id(param)]
        assert group["weight_decay"] == (0 if param.ndim == 1 else settings.weight_decay)
        assert group["lr"] == pytest.approx(0.3 if id(param) in heads else 0.1)
        if id(param) in heads:
            assert group["lr_scale"] == 1
        else:
            scales.append(group["lr_scale"])
    assert scales == sorted(scales)
    assert scales[-1] == 0.5
    assert scales.count(0.5) <= 12


def test_patience_ends_a_training_and_a_resumed_one_alike(tmp_path, monkeypatch):
    """The learning rate is next to nothing, so that no epoch is better than the first."""
    flags = {"lr": 1e-12, "weight_decay": 0.0, "epochs": 9, "patience": 2, "device": "cpu", "method": "uniform"}
    settings = compose("digits", flags={**flags, "test_fraction": 0.8, "optimizer": "adamw", "layer_decay": 0.9})
    monkeypatch.setattr("exitwise.workflows.train.anytime", lambda outputs: [0.5] * settings.exit_count)
    result = ew.train(settings, tmp_path / "run")
    assert result.ended_early
    assert len(result.history) == 3
    again = ew.train(settings, tmp_path / "run")
    assert again.ended_early
    assert again.history == result.history
    progress = load_checkpoint(result.run.checkpoints.latest("last"))["progress"]
    assert (progress["epoch"], progress["stale"]) == (3, 2)


def test_layers_below_exits_that_are_not_trained():
    flags = {"model": "timm/resnet18", "regime": "heads", "pretrained": "hub", "recipe": "digits", "layer_decay": 0.5}
    with pytest.raises(UserError, match="layer_decay goes with other regimes"):
        compose(None, flags=flags)
