import pytest
import torch

from exitwise.models import RANet, create_model
from exitwise.models.authors import our_ranet_name
from exitwise.models.ranet import FusionBlock, PlainBlock


def test_stages_one_by_one_equal_the_whole():
    model = create_model("ranet_small").eval()
    images = torch.randn(4, 1, 8, 8)
    state, logits = images, []
    for stage in model.stages:
        state, out = stage(state)
        logits.append(out)
    assert all(map(torch.equal, logits, model(images)))
    assert [z.shape for z in logits] == [(4, 10)] * 2


def test_exits_come_flow_by_flow_from_low_to_high_resolution():
    model = create_model("ranet_cifar_6").eval()
    sides, kinds = [], []
    with torch.no_grad():
        for stage, (state, _) in zip(model.stages, model.run_stages(torch.randn(1, 3, 32, 32)), strict=True):
            sides.append(state.x.shape[-1])
            kinds.append([type(block) for block in stage.body.blocks])
    assert sides == [8, 8, 8, 8, 8, 8]  # every flow ends at the lowest resolution
    assert kinds[0] == kinds[1] == kinds[3] == kinds[5] == [PlainBlock]
    assert kinds[2] == [FusionBlock] * 2 + [PlainBlock]
    assert kinds[4] == [FusionBlock] * 4 + [PlainBlock]


def test_where_the_authors_blocks_are():
    model = create_model("ranet_cifar_6")
    places = [(flow, block, *model.stage_of(flow, block)) for flow in range(3) for block in range(2 + 2 * flow)]
    assert [place[2:] for place in places] == [
        *[(0, 0), (1, 0)],
        *[(2, 0), (2, 1), (2, 2), (3, 0)],
        *[(4, 0), (4, 1), (4, 2), (4, 3), (4, 4), (5, 0)],
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("FirstLayer.layers.1.net.0.weight", "stages.0.body.stem.scales.1.0.weight"),
        ("scale_flows.0.1.layers.0.conv_normal.net.3.weight", "stages.1.body.blocks.0.layers.0.1.0.weight"),
        ("module.scale_flows.1.0.layers.1.conv_up.net.4.bias", "stages.2.body.blocks.0.layers.1.lower.1.1.bias"),
        ("scale_flows.1.1.layers.0.conv_normal.net.0.weight", "stages.2.body.blocks.1.layers.0.same.0.0.weight"),
        ("scale_flows.2.3.conv_last.net.1.running_var", "stages.4.body.blocks.3.last.1.running_var"),
        ("scale_flows.1.1.trans.net.0.weight", "stages.2.body.blocks.1.transition.0.weight"),
        ("classifier.5.m.1.net.0.weight", "stages.5.head.convs.1.0.weight"),
        ("classifier.5.linear.bias", "stages.5.head.linear.bias"),
        ("scale_flows.7.0.trans.net.0.weight", "scale_flows.7.0.transition.0.weight"),
    ],
)
def test_names_of_the_authors(theirs, ours):
    assert our_ranet_name(create_model("ranet_cifar_6"), theirs) == ours


def test_starts_as_the_authors_networks_do():
    torch.manual_seed(0)
    model = create_model("ranet_cifar_6")
    head = model.stages[5].head
    weight = head.convs[1][0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    assert float(head.linear.bias.abs().max()) == 0
    stem = model.stages[0].body.stem.scales[1][0].weight
    assert stem.abs().max().item() <= (1 / (stem.shape[1] * 9)) ** 0.5  # PyTorch's uniform default


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_mode": "lg"}, "step_mode must be one of even, lin_grow; got 'lg'"),
        ({"scales": (1, 2)}, "expected 3 scales, one per flow; got 2"),
        ({"bottleneck_factors": (4, 2)}, "expected 3 bottleneck_factors, one per flow; got 2"),
        ({"block_step": 0}, "every flow needs a block with an exit; got blocks 2 and block_step 0"),
        ({"compress": 0.1}, "compress times growth must be at least 1; got 0.1 x 6"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RANet(**options)
