import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exitwise import EarlyExitRunner, ExitPolicy, add_exits, count_cost, exit_points, train_pass
from exitwise.errors import ExitwiseWarning, UserError
from exitwise.models.backbones.backbone import CannotSplitError
from exitwise.models.heads import Feature, LinearHead, MapHead, suited_head
from exitwise.weighting.calls import trainable
from exitwise.weighting.tangents import loss_tangents

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """Four blocks; ``between`` is called on the map after the second, ``ending`` on the pooled features."""

    def __init__(self, between=lambda network, x: x, ending=lambda network, x: x):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(4))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.register_buffer("shift", torch.ones(8, 1, 1))
        self.between, self.ending = between, ending
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = x + block(x) * self.scale + self.shift
            if index == 1:
                x = self.between(self, x)
        return self.fc(self.ending(self, x.mean((2, 3))))


class Block(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.inner = inner or nn.Identity()

    def forward(self, x):
        return x + self.inner(torch.relu(self.conv(x)))


class Stacked(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Gate(nn.Module):
    """Decides by pixel values."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def names(model):
    return [point.name for point in model.points]


def test_exits_are_spread_over_the_cost_and_their_names_can_be_given():
    backbone = timm.create_model("resnet18", num_classes=4).eval()
    shape = (3, 64, 64)
    model = add_exits(backbone, exits=4, input_shape=shape)
    assert names(model) == ["layer1.0", "layer2", "layer3"]
    assert [round(point.share, 2) for point in model.points] == [0.19, 0.55, 0.77]
    costs = count_cost(model).macs
    assert all(abs(cost / costs[-1] - point.share) < 0.03 for cost, point in zip(costs, model.points, strict=False))
    chosen = add_exits(backbone, at=["layer1.0", "layer4.0"], input_shape=shape)
    assert names(chosen) == ["layer1.0", "layer4.0"]
    assert {"layer1.0", "layer1", "layer2.0", "layer4"} <= {point.name for point in exit_points(backbone, shape)}


def test_parameters_are_the_backbones_own():
    backbone = Plain()
    model = add_exits(backbone, at=["stem"], input_shape=SHAPE)
    ours = {id(param) for param in model.parameters()}
    assert all(id(param) in ours for param in backbone.parameters())
    with torch.no_grad():
        backbone.scale += 1
        images = torch.randn(2, *SHAPE)
        assert torch.equal(model(images)[-1], backbone(images))


def test_other_image_sizes_run_where_the_backbone_takes_them():
    backbone = timm.create_model("resnet10t", num_classes=4).eval()
    model = add_exits(backbone, exits=3, input_shape=(3, 64, 64)).eval()
    images = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        first, _, last = model(images)
        assert torch.equal(last, backbone(images))
    assert first.shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": ["layer9"]}, "no exit can go after 'layer9'; did you mean .*exits can go after .*layer1"),
        ({"at": ["layer2", "layer1"]}, "expected exits in the order of the network, each once; got layer2, layer1"),
        ({"at": ["layer1", "layer1"]}, "each once; got layer1, layer1"),
        ({"exits": 99}, r"expected at most \d+ exits, for that many places between .*; got 99 .*skip=False"),
        ({"exits": 0}, "expected exits .* of at least 1; got 0"),
        ({"exits": 3, "at": ["layer1"]}, "expected exits or at, not both"),
        ({"num_classes": 7}, "expected a backbone for 7 classes; ResNet has 4"),
        ({"head": "big"}, "head must be auto, linear or a function of"),
    ],
)
def test_bad_wishes_are_refused(options, message):
    backbone = timm.create_model("resnet10t", num_classes=4)
    with pytest.raises(UserError, match=message):
        add_exits(backbone, input_shape=(3, 64, 64), **options)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(UserError, match=r"expected a classifier .* logits \(2, C\); Conv2d gives \(2, 8"):
        add_exits(nn.Conv2d(3, 8, 3), input_shape=SHAPE)


def test_a_network_that_decides_by_pixels_is_refused_by_name_and_can_be_left_whole():
    def between(network, x):
        return x * 2 if x.sum() > 0 else x

    backbone = Plain(between).eval()
    with pytest.raises(CannotSplitError, match=r"Plain cannot be run in parts: its own forward .*skip=False"):
        add_exits(backbone, exits=2, input_shape=SHAPE)
    model = add_exits(backbone, exits=3, input_shape=SHAPE, skip=False).eval()
    assert not model.skips
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        assert torch.equal(model(images)[-1], backbone(images))
        assert [z.shape for z in model(images)] == [(5, 3)] * 3
        result = EarlyExitRunner(model, ExitPolicy([0.0, 0.0]))(images)
    assert result.exit.tolist() == [0] * 5
    costs = count_cost(model).macs
    assert costs[0] > 0.9 * costs[-1]  # nothing is saved, and that is what the figures say


def test_a_module_that_decides_by_pixels_stays_whole_and_exits_go_elsewhere():
    backbone = Stacked([Block(), Block(Gate()), Block(), Block(Gate())]).eval()
    model = add_exits(backbone, exits=3, input_shape=SHAPE).eval()
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(model(images)[-1], backbone(images))
    with pytest.raises(UserError, match=r"got 99; module blocks\.1\.inner decides by what it computes"):
        add_exits(backbone, exits=99, input_shape=SHAPE)


def test_training_mode_is_asked_at_run_time_also_by_functions():
    backbone = Plain(ending=lambda network, x: F.dropout(x, 0.5, network.training))
    model = add_exits(backbone, at=["stem"], input_shape=SHAPE)
    images = torch.randn(4, *SHAPE)
    for mode in (True, False, True):
        model.train(mode)
        backbone.train(mode)
        torch.manual_seed(1)
        ours = model.forward_last(images)
        torch.manual_seed(1)
        assert torch.equal(ours, backbone(images))
    assert not torch.equal(model.forward_last(images), model.forward_last(images))


def test_a_constant_that_all_blocks_use_does_not_travel_between_stages():
    class Shared(Stacked):
        def __init__(self):
            super().__init__([Block() for _ in range(4)])
            self.table = nn.Parameter(torch.randn(8))

        def forward(self, x):
            bias = self.table.view(1, 8, 1, 1).sigmoid()
            x = self.stem(x)
            for block in self.blocks:
                x = block(x) * bias
            return self.fc(x.mean((2, 3)))

    backbone = Shared().eval()
    model = add_exits(backbone, exits=2, at=None, input_shape=SHAPE).eval()
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        state, _ = model.stages[0](images)
        assert isinstance(state, torch.Tensor)
        assert torch.equal(model(images)[-1], backbone(images))
    assert sum(param is backbone.table for _, param in model.named_parameters()) == 1
    model(images)[-1].sum().backward()
    assert backbone.table.grad is not None


def test_a_network_burnt_to_one_batch_size_is_refused():
    backbone = Plain(ending=lambda network, x: x.reshape(2, int(x.numel() / 2)).reshape(-1, 8))
    with pytest.raises(UserError, match=r"expected a classifier|Plain cannot be run in parts: (invalid shape|shape)"):
        add_exits(backbone, exits=2, input_shape=SHAPE)


def test_modes_of_the_backbone_are_kept():
    backbone = Plain().train()
    backbone.blocks[1].eval()
    model = add_exits(backbone, at=["stem"], input_shape=SHAPE)
    assert model.training
    assert backbone.training
    assert backbone.blocks[0].training
    assert not backbone.blocks[1].training
    assert not backbone.blocks[1][0].training
    backbone.blocks[1].train()
    assert not add_exits(backbone.eval(), at=["stem"], input_shape=SHAPE).training


def test_a_copy_is_independent():
    model = add_exits(Plain(), at=["stem"], input_shape=SHAPE)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param.zero_()
    assert float(next(model.parameters()).abs().sum()) > 0


def test_frozen_bodies_keep_parameters_statistics_and_mode():
    backbone = timm.create_model("resnet10t", num_classes=4)
    model = add_exits(backbone, exits=3, input_shape=(3, 64, 64))
    model.freeze_bodies()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    loss = sum(logits.square().sum() for logits in model(torch.randn(4, 3, 64, 64)))
    optimizer = torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=0.1)
    loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(".head." in name for name in changed)
    assert any(name.startswith("stages.2.head.") for name in changed)  # the backbone's own classifier is trained
    assert all(not stage.body.training and stage.head.training for stage in model.stages)


@pytest.mark.parametrize(
    ("shape", "feature"),
    [
        ((2, 8, 14, 14), Feature("map", 8, (14, 14))),
        ((2, 14, 14, 8), Feature("channels-last map", 8, (14, 14))),
        ((2, 8, 8, 8), Feature("map", 8, (8, 8))),
        ((2, 7, 5, 3), None),
        ((2, 16, 196, 24), None),
        ((2, 768, 1), None),
        ((2, 196, 24), Feature("tokens", 24, (196,), 0)),
        ((2, 197, 24), Feature("tokens", 24, (197,), 1)),
        ((2, 198, 24), Feature("tokens", 24, (198,), 2)),
        ((2, 24), Feature("vector", 24, ())),
        ((2,), None),
        ((2, 3, 4, 5, 6), None),
    ],
)
def test_kinds_of_features(shape, feature):
    assert Feature.of(shape) == feature
    if feature is not None:
        for head in ("auto", "linear"):
            assert suited_head(feature, 5, head)(torch.randn(shape)).shape == (2, 5)


def test_maps_of_other_than_square_images():
    assert Feature.of((2, 8, 4, 6), image=(64, 96)) == Feature("map", 8, (4, 6))
    assert Feature.of((2, 8, 12, 192), image=(64, 96)) == Feature("channels-last map", 192, (8, 12))
    assert Feature.of((2, 9, 5, 7), image=(100, 140)) == Feature("map", 9, (5, 7))


def test_exits_do_not_go_where_the_next_layer_overwrites():
    layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)] for _ in range(4)]
    backbone = Stacked([layer for pair in layers for layer in pair])
    found = {point.name for point in exit_points(backbone, SHAPE)}
    assert "blocks.1" in found
    assert "blocks.0" not in found
    model = add_exits(backbone, exits=4, input_shape=SHAPE).train()
    sum(logits.sum() for logits in model(torch.randn(4, *SHAPE))).backward()
    assert all(param.grad is not None for param in model.parameters())


class Counts(nn.Module):
    """Writes to a buffer, in one way or the other."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.seen.add_(1)
        else:
            self.seen = self.seen + 1
        return x * (1 + self.seen)


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_forward_writes_to_are_left_alone_and_written_to_as_before(in_place):
    backbone = Stacked([Block(), Block(Counts(in_place)), Block(), Block()]).train()
    model = add_exits(backbone, exits=3, input_shape=SHAPE)
    counter = backbone.blocks[1].inner
    assert type(counter.seen) is torch.Tensor
    assert float(counter.seen) == 0
    images = torch.randn(3, *SHAPE)
    first = model.forward_last(images)
    assert float(counter.seen) == 1
    counter.seen.zero_()
    assert torch.equal(backbone(images), first)


def test_a_network_that_writes_to_its_own_buffer_is_refused_and_stays_as_it_was():
    def between(network, x):
        network.shift = network.shift + 1
        return x

    backbone = Plain(between).train()
    with pytest.raises(CannotSplitError, match="it writes to a buffer or an attribute"):
        add_exits(backbone, exits=2, input_shape=SHAPE)
    assert torch.equal(backbone.shift, torch.ones(8, 1, 1))
    assert len(add_exits(backbone, exits=3, input_shape=SHAPE, skip=False)(torch.randn(2, *SHAPE))) == 3


def test_gradients_that_a_network_turns_off_stay_off():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            with torch.no_grad():
                return self.conv(x)

    backbone = Stacked([Block(), Block(Frozen()), Block()])
    model = add_exits(backbone, exits=3, input_shape=SHAPE)
    model.forward_last(torch.randn(2, *SHAPE)).sum().backward()
    assert backbone.blocks[1].inner.conv.weight.grad is None
    assert backbone.blocks[0].conv.weight.grad is not None


def test_exits_that_would_save_nothing_or_see_nothing_are_not_chosen():
    class Ends(nn.Module):
        """Nearly all of its cost lies in one module."""

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.middle = nn.Conv2d(8, 64, 9, padding=4)
            self.last = nn.Linear(64, 3)

        def forward(self, x):
            return self.last(self.middle(self.first(x)).mean((2, 3)))

    with pytest.raises(UserError, match=r"expected at most 1 exits, .* between 4 and 96 % of the cost"):
        add_exits(Ends(), exits=2, input_shape=SHAPE)
    assert names(add_exits(Ends(), at=["first"], input_shape=SHAPE)) == ["first"]


def test_a_network_without_parameters_is_refused():
    with pytest.raises(UserError, match="expected a network with parameters; Flatten has none"):
        add_exits(nn.Flatten(), exits=2, input_shape=SHAPE)


def test_prefix_tokens_as_the_backbone_says_where_they_fit():
    assert Feature.of((1, 201, 24), prefix=5).prefix == 5
    assert Feature.of((1, 196, 24), prefix=1).prefix == 0


def test_kinds_of_heads():
    backbone = timm.create_model("resnet10t", num_classes=4)
    shape = (3, 64, 64)
    assert isinstance(add_exits(backbone, exits=2, input_shape=shape).stages[0].head, MapHead)
    assert isinstance(add_exits(backbone, exits=2, input_shape=shape, head="linear").stages[0].head, LinearHead)

    def own(feature, classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(feature.channels, classes))

    assert isinstance(add_exits(backbone, exits=2, input_shape=shape, head=own).stages[0].head, nn.Sequential)


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_attention_is_fast_except_in_forward_mode():
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=4)
    model = add_exits(backbone, exits=3, input_shape=(3, 32, 32)).train()
    fast = "_scaled_dot_product_flash_attention_for_cpu"
    with Operators() as operators:
        run = train_pass(model, torch.randn(4, 3, 32, 32), torch.randint(4, (4,)), keep=True)
        run.losses.sum().backward(retain_graph=True)
    assert fast in operators.seen
    params = trainable(model)
    tangents = {name: torch.randn_like(param) for name, param in params.items()}
    loss_tangents(model, params, tangents, run)  # the first time, it looks whether a plain pass gives the same
    with Operators() as operators:
        loss_tangents(model, params, tangents, run)
    assert fast not in operators.seen


class Annealed(nn.Module):
    """A block whose forward pass reads numbers and switches from attributes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.tau = 30.0
        self.adapter = True

    def forward(self, x):
        return x + torch.softmax(self.conv(x) / self.tau, 1) if self.adapter else x


@pytest.mark.parametrize(("attribute", "value"), [("tau", 1.0), ("adapter", False)])
def test_attributes_that_change_are_refused_by_name_and_followed_by_networks_left_whole(attribute, value):
    backbone = Stacked([Annealed() for _ in range(4)]).eval()
    cut = copy.deepcopy(add_exits(backbone, exits=3, input_shape=SHAPE)).eval()
    whole = add_exits(backbone, at=["blocks.0", "blocks.2"], input_shape=SHAPE, skip=False).eval()
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(cut(images)[-1], backbone(images))
        setattr(backbone.blocks[1], attribute, value)
        assert torch.equal(whole(images)[-1], backbone(images))
        cut(images)  # a copy, of which nothing has changed
        ours = add_exits(backbone, exits=3, input_shape=SHAPE).eval()
        setattr(backbone.blocks[2], attribute, value)
        with pytest.raises(
            UserError, match=rf"expected blocks\.2\.{attribute} as it was .*add exits again, or with skip"
        ):
            ours(images)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_kept_or_refused(reentrant):
    class Checkpointed(Stacked):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
            return self.fc(x.mean((2, 3)))

    class Within(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant) if self.training else x + 1

    with pytest.raises(CannotSplitError, match=r"it checkpoints gradients .*skip=False"):
        add_exits(Checkpointed([Block() for _ in range(4)]), exits=3, input_shape=SHAPE)
    model = add_exits(Stacked([nn.Sequential(Block(), Within()) for _ in range(4)]), exits=3, input_shape=SHAPE)
    assert any(isinstance(module, Within) for module in model.modules())


def test_a_forward_pass_that_asks_for_its_training_mode():
    class Auxiliary(Stacked):
        """Has a second classifier while it trains, as Inception has."""

        def __init__(self):
            super().__init__([Block() for _ in range(4)])
            self.side = nn.Linear(8, 3)

        def forward(self, x):
            x = self.blocks(self.stem(x))
            aux = self.side(x.mean((2, 3))) if self.training else None
            return Answer(self.fc(x.mean((2, 3))), aux)

    class Otherwise(Stacked):
        def forward(self, x):
            x = self.stem(x) * 2 if self.training else self.stem(x)
            return self.fc(self.blocks(x).mean((2, 3)))

    class Answer:
        def __init__(self, logits, side):
            self.logits, self.side = logits, side

    backbone = Auxiliary()
    model = add_exits(backbone, exits=3, input_shape=SHAPE)
    images = torch.randn(4, *SHAPE)
    for mode in (True, False):
        assert torch.equal(model.train(mode).forward_last(images), backbone.train(mode)(images).logits)
    with pytest.raises(CannotSplitError, match="it computes otherwise in its training mode"):
        add_exits(Otherwise([Block() for _ in range(4)]), exits=3, input_shape=SHAPE)


class TwoScales(nn.Module):
    """Blocks hand on two maps and their size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(TwoMaps() for _ in range(5))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        fine, coarse, size = self.stem(x), None, x.shape[-2:]
        coarse = nn.functional.avg_pool2d(fine, 2)
        for block in self.blocks:
            fine, coarse, size = block(fine, coarse, size)
        batch, channels = fine.shape[:2]
        return self.fc(torch.cat([fine.reshape(batch, channels, -1).mean(2), coarse.mean((2, 3))], 1))


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = Block(), Block()

    def forward(self, fine, coarse, size):
        height, width = size
        tokens = self.fine(fine).flatten(2).view(fine.size(0), -1, height, width)
        up = nn.functional.interpolate(coarse, size=(height, width))
        return tokens + up, self.coarse(coarse) + nn.functional.avg_pool2d(fine, 2), size


def test_several_tensors_and_sizes_between_blocks():
    backbone = TwoScales().eval()
    assert len(add_exits(backbone, exits=4, input_shape=SHAPE).points) == 3
    model = add_exits(backbone, at=["blocks.0", "blocks.2"], input_shape=SHAPE).eval()
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        expected = backbone(images)
        assert torch.equal(model(images)[-1], expected)
        state, _ = model.stages[0](images)
        assert len(state) == 2
        rows = [3, 0]
        state = [part[rows] for part in state]
        for stage in model.stages[1:]:
            state, logits = stage(state)
    torch.testing.assert_close(logits, expected[rows])
    result = EarlyExitRunner(model, ExitPolicy([0.4, 0.4]))(images)
    assert len(result.exit) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("skip", [True, False])
def test_heads_have_the_type_of_the_backbone(dtype, skip):
    model = add_exits(Stacked([Block() for _ in range(4)]).to(dtype), exits=3, input_shape=SHAPE, skip=skip)
    assert {param.dtype for param in model.parameters()} == {dtype}
    assert [logits.dtype for logits in model(torch.randn(2, *SHAPE, dtype=dtype))] == [dtype] * 3


def test_parameters_alone_that_several_stages_use():
    class Shared(Stacked):
        def __init__(self):
            super().__init__([Block() for _ in range(6)])
            self.bias = nn.Parameter(torch.randn(1, 8, 1, 1))

        def forward(self, x):
            bias = self.bias * 2 + 1
            bias = bias * bias
            x = self.stem(x)
            for block in self.blocks:
                x = block(x) + bias
            return self.fc(x.mean((2, 3)))

    backbone = Shared().eval()
    model = add_exits(backbone, exits=4, input_shape=SHAPE).eval()
    images = torch.randn(2, *SHAPE)
    assert torch.equal(model(images)[-1], backbone(images))


def test_wrappers_are_taken_off():
    inner = Stacked([Block() for _ in range(4)])
    expected = names(add_exits(inner, exits=3, input_shape=SHAPE))
    assert names(add_exits(nn.DataParallel(inner), exits=3, input_shape=SHAPE)) == expected
    assert names(add_exits(torch.compile(inner), exits=3, input_shape=SHAPE)) == expected
    assert names(add_exits(inner, at="blocks.1", input_shape=SHAPE)) == ["blocks.1"]


def compiled_in_part():
    backbone = Stacked([Block() for _ in range(4)])
    backbone.blocks[1].compile()
    return backbone


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Stacked([Block() for _ in range(4)]), {nn.Linear}, torch.qint8)


def with_adapters():
    backbone = Stacked([Block()])
    backbone.base_model, backbone.peft_config = Block(), {}
    return backbone


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Stacked([Block()]).eval(), torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (compiled_in_part, r"blocks\.1 is compiled in place \(compile the network with exits"),
        (quantized, r"fc is quantised \(add exits first"),
        (with_adapters, r"Stacked holds adapters beside Block \(network\.merge_and_unload"),
        (scripted, r"is compiled by torch\.jit \(give the one before"),
        (
            lambda: type("Model", (Stacked,), {"__module__": "lightning.model"})([Block()]),
            r"a Lightning module; got Model",
        ),
    ],
)
def test_networks_that_cannot_have_exits_are_named(make, message):
    with pytest.raises(UserError, match=message):
        add_exits(make(), exits=2, input_shape=SHAPE)


def test_exits_that_would_save_little_are_warned_of():
    class Front(nn.Module):
        """All places lie at the front."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.rest = nn.Conv2d(8, 64, 7, padding=3)
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(self.rest(self.b(self.a(x))).mean((2, 3)))

    backbone = Front()
    backbone.rest = nn.Conv2d(8, 16, 3, padding=1)
    backbone.fc = nn.Linear(16, 3)
    with pytest.warns(ExitwiseWarning, match=r"exits? after .* of the cost"):
        add_exits(backbone, exits=3, input_shape=SHAPE)
