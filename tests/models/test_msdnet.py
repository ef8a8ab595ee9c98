import pytest
import torch

from exitwise.kernels.modes import evaluating
from exitwise.models import MSDNet, count_cost, create_model, list_models

TINY = {"channels": 4, "growth": 4, "growth_factors": (1, 2), "bottleneck_factors": (1, 2), "head_channels": 4}


@pytest.mark.parametrize("name", list_models())
def test_named_sizes_have_growing_costs(name):
    model = create_model(name)
    cost = count_cost(model)
    assert len(cost.macs) == model.exits
    assert list(cost.macs) == sorted(set(cost.macs))
    assert cost.params[-1] == sum(p.numel() for p in model.parameters())


def test_stages_one_by_one_equal_the_whole():
    model = MSDNet(5, blocks=3, step=1, input_shape=(3, 16, 16), **TINY).eval()
    images = torch.randn(4, 3, 16, 16)
    state, logits = images, []
    for stage in model.stages:
        state, out = stage(state)
        logits.append(out)
    assert all(map(torch.equal, logits, model(images)))
    assert [z.shape for z in logits] == [(4, 5)] * 3


def test_cost_adds_up_over_a_plain_convolution_count():
    model = MSDNet(2, blocks=2, step_mode="even", input_shape=(1, 8, 8), **TINY)
    cost, macs = count_cost(model), []

    def count(module, args, output):
        per_output = module.weight[0].numel()
        macs.append(per_output * output[0].numel())

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad(), evaluating(model):
        model(torch.zeros(1, 1, 8, 8))
    assert cost.macs[-1] == sum(macs)


def test_counting_leaves_modes_and_statistics_alone():
    model = MSDNet(2, blocks=2, input_shape=(1, 8, 8), **TINY).train()
    model.stages[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_cost(model)
    assert model.training
    assert not model.stages[0].training
    assert model.stages[1].body[0].training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_mode": "linear"}, "step_mode must be one of even, lin_grow; got 'linear'"),
        ({"prune": "mid"}, "prune must be one of max, min"),
        ({"bottleneck_factors": (1,)}, "expected 3 bottleneck_factors"),
        ({"growth": 3, "growth_factors": (1, 1, 1)}, "must be even"),
        ({"blocks": 1}, "3 scales need at least 3 layers in all; got 1"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MSDNet(10, **options)


def test_unknown_name_gets_the_near_match():
    with pytest.raises(ValueError, match="unknown model 'msdnet_cifar5'; did you mean 'msdnet_cifar_5'"):
        create_model("msdnet_cifar5")
