"""What each flow does to gradients, beside sums by hand."""

import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.errors import UserError
from exitwise.models.staged import Stage, StagedModel
from exitwise.settings.schema import resolve


def gradients(flow, **options):
    """Return the gradient of each of three stages' weights for each exit's loss alone, (exits, stages, 4, 4)."""
    torch.manual_seed(0)
    stages = [Stage(nn.Linear(4, 4, bias=False), nn.Linear(4, 3)) for _ in range(3)]
    model = StagedModel(stages, 3, (4,)).double().train()
    model.flow = None if flow is None else ew.create_flow(flow, **options)
    x = torch.randn(5, 4, dtype=torch.float64)
    weights = [stage.body.weight for stage in stages]
    found = []
    for logits in model(x):
        own = torch.autograd.grad(logits.square().sum(), weights, retain_graph=True, allow_unused=True)
        found.append(torch.stack([torch.zeros(4, 4, dtype=x.dtype) if each is None else each for each in own]))
    return torch.stack(found), model, x


def test_plain_leaves_them():
    assert torch.equal(gradients("plain")[0], gradients(None)[0])


def test_equilibrium_gives_each_stage_the_mean_over_the_exits_behind_it():
    plain, balanced = gradients(None)[0], gradients("equilibrium")[0]
    behind = torch.tensor([3.0, 2, 1], dtype=plain.dtype)[None, :, None, None]
    torch.testing.assert_close(balanced, plain / behind)


def test_partition_gives_deeper_exits_a_part_of_the_channels():
    plain, parted = gradients(None)[0], gradients("partition", shared_channels=0.5)[0]
    for k in range(3):
        torch.testing.assert_close(parted[k, k], plain[k, k])
    torch.testing.assert_close(parted[1, 0, :2], plain[1, 0, :2])
    assert parted[1:, 0, 2:].abs().max() == 0
    assert parted[2, 0].abs().max() > 0
    assert parted[2, 1, 2:].abs().max() == 0


def test_detached_lets_the_last_exit_alone_steer_for_a_share_of_the_training():
    plain = gradients(None)[0]
    detached, model, x = gradients("detached", detached_share=0.4)
    assert detached[:2].abs().max() == 0
    assert torch.equal(detached[2], plain[2])
    for progress, steers in ((0.39, False), (0.4, True)):
        model.flow.progress = progress
        model.zero_grad()
        model(x)[0].sum().backward()
        assert (model.stages[0].body.weight.grad is not None) == steers
        assert model.stages[0].head.weight.grad is not None


@pytest.mark.parametrize("flow", ["equilibrium", "partition", "detached"])
def test_outputs_and_evaluation_know_nothing_of_it(flow):
    _, model, x = gradients(flow)
    changed = model(x)
    model.eval()
    kept = model(x)
    model.flow = None
    for one, two, three in zip(changed, kept, model.train()(x), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_channels_are_where_they_lie():
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=3)
    assert ew.add_exits(vit, 2, input_shape=(3, 32, 32)).stages[0].channels == -1
    resnet = timm.create_model("resnet10t", num_classes=3)
    assert ew.add_exits(resnet, 2, input_shape=(3, 64, 64)).stages[0].channels == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flow": "equilibrum"}, "setting flow: input should be 'plain', 'equilibrium', .*; got 'equilibrum'"),
        ({"shared_channels": 0.3}, "shared_channels is an option of flow partition; flow is plain"),
        ({"flow": "partition", "shared_channels": 0}, "setting shared_channels: .* greater than 0; got 0"),
        ({"flow": "equilibrium", "compile": True}, "other flows than plain cannot be compiled; got flow equilibrium"),
        (
            {"flow": "equilibrium", "model": "timm/resnet10t", "regime": "heads", "pretrained": "hub"},
            "other flows than plain go with other regimes",
        ),
        (
            {"flow": "partition", "model": "timm/resnet10t", "skip": False},
            "other flows than plain go with a backbone in stages; got flow partition and skip false",
        ),
        (
            {"flow": "equilibrium", "method": "meta-weighted", "gradient": "finite-difference"},
            r"finite differences do not see how gradients flow \(flow equilibrium\); use gradient forward",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)
    with pytest.raises(UserError, match="unknown flow 'equilibrum'; did you mean 'equilibrium'"):
        ew.create_flow("equilibrum")
