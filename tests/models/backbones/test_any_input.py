"""Exits on networks that take other things than images."""

import math

import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.errors import UserError
from exitwise.kernels.inputs import varied
from exitwise.models.heads import Feature


def block(size_in):
    return nn.Sequential(nn.Conv1d(size_in, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU())


def signals():
    return nn.Sequential(
        block(2), block(16), block(16), block(16), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)
    )


def vectors():
    return nn.Sequential(*(nn.Sequential(nn.Linear(10, 10), nn.ReLU()) for _ in range(4)), nn.Linear(10, 3))


def hugging_face_vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize(
    ("network", "example", "feature"),
    [
        (signals, torch.zeros(1, 2, 50), Feature("row", 16, (50,))),
        (vectors, torch.zeros(1, 10), Feature("vector", 10, ())),
        (hugging_face_vit, {"pixel_values": torch.zeros(1, 3, 32, 32)}, Feature("tokens", 32, (17,), 1)),
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_exits_and_their_runner(network, example, feature, skip):
    torch.manual_seed(0)
    model = ew.add_exits(network().eval(), exits=3, example=example, skip=skip)
    assert {point.feature for point in model.points} == {feature}
    if isinstance(example, torch.Tensor):
        assert model.input_shape == example.shape[1:]
    else:
        with pytest.raises(UserError, match="a network that takes one tensor; this one takes pixel_values"):
            _ = model.input_shape
    costs = ew.count_cost(model).macs
    assert costs == model.exit_macs
    assert 0 < costs[0] <= costs[1] <= costs[2]
    inputs = varied(model.example, 40, next(model.parameters()))
    with torch.no_grad():
        logits = torch.stack(model(inputs), dim=1)
    outputs = ew.Outputs.from_logits(logits, torch.zeros(40, dtype=torch.long))
    policy = ew.calibrate_proportions(outputs.confidences, [0.4, 0.3, 0.3])
    result = ew.EarlyExitRunner(model, policy)(inputs)
    left = outputs.under(policy)
    assert result.exit.tolist() == left.exits.tolist()
    assert result.prediction.tolist() == left.predictions.tolist()
    assert len(set(result.exit.tolist())) == 3


class Folded(nn.Module):
    """Gives features whose axes nothing tells apart."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.fold = nn.Unflatten(1, (2, 3, 4))
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.last = nn.Linear(24, 3)

    def forward(self, x):
        return self.last(self.blocks(self.fold(self.first(x))).flatten(1))


def test_features_of_unknown_layout_take_heads_of_their_own():
    example = torch.zeros(1, 24)
    assert [point.name for point in ew.exit_points(Folded(), example=example)] == ["first"]
    with pytest.raises(UserError, match=r"got one of unknown layout, \(B, 2, 3, 4\): only a head of your own"):
        ew.add_exits(Folded(), at=["blocks.0"], example=example)

    def own(feature, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(feature.size), classes))

    model = ew.add_exits(Folded(), at=["blocks.0"], example=example, head=own)
    assert model(torch.zeros(5, 24))[0].shape == (5, 3)


def test_example_inputs_elsewhere_are_refused():
    with pytest.raises(UserError, match="expected example inputs on cpu, where the network lies; got them on meta"):
        ew.add_exits(vectors(), exits=2, example=torch.zeros(1, 10, device="meta"))


def test_inputs_that_the_network_does_not_take_are_refused():
    with pytest.raises(UserError, match=r"inputs that Sequential takes; it fails on torch.float32 \(2, 3, 224, 224\)"):
        ew.add_exits(signals())
    with pytest.raises(UserError, match=r"it fails on torch.float32 \(2, 9\), by RuntimeError"):
        ew.exit_points(vectors(), example=torch.zeros(1, 9))
