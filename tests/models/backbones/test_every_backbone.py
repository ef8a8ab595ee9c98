"""Exits on every kind of backbone, with random weights and small inputs. A new one joins by one line in BACKBONES."""

import copy

import pytest
import torch
import torchvision
from torch.nn.attention import SDPBackend, sdpa_kernel

from decisions import assert_decides_as_simulated
from exitwise import add_exits, calibrate_proportions, collect_outputs, create_method, meta_gradient, train_pass
from exitwise.errors import UserError
from exitwise.models.backbones.backbone import logits_of
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.step import half_batches, half_step

CLASSES = 5


def from_timm(name, **options):
    import timm

    return timm.create_model(name, num_classes=CLASSES, **options)


def from_transformers(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **options)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}

BACKBONES = {
    "resnet": (lambda: from_timm("resnet10t", drop_rate=0.1, drop_path_rate=0.1), 64),
    "resnet, bottlenecks": (lambda: from_timm("resnet26"), 64),
    "regnet": (lambda: from_timm("regnety_002"), 64),
    "densenet": (lambda: from_timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)), 64),
    "mobilenetv3": (lambda: from_timm("mobilenetv3_small_050"), 64),
    "efficientnet": (lambda: from_timm("efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2), 64),
    "convnext": (lambda: from_timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), 64),
    "repvgg": (lambda: from_timm("repvgg_a0"), 64),
    "vit": (
        lambda: from_timm("vit_tiny_patch16_224", img_size=64, depth=4, proj_drop_rate=0.1, drop_path_rate=0.1),
        64,
    ),
    "deit, distilled": (lambda: from_timm("deit_tiny_distilled_patch16_224", img_size=64, depth=4), 64),
    "swin": (
        lambda: from_timm(
            "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(2, 2, 2), num_heads=(1, 2, 4)
        ),
        64,
    ),
    "mixer": (lambda: from_timm("mixer_s16_224", img_size=64), 64),
    "coatnet": (lambda: from_timm("coatnet_pico_rw_224", img_size=64), 64),
    "maxvit": (lambda: from_timm("maxvit_rmlp_pico_rw_256", img_size=64), 64),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 64),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(
            32, 8, num_layers=4, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=CLASSES, dropout=0.1
        ),
        32,
    ),
    "Hugging Face ResNet": (
        lambda: from_transformers("ResNet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
        64,
    ),
    "Hugging Face ViT": (lambda: from_transformers("ViT", **VIT, image_size=32, patch_size=8), 32),
    "Hugging Face ConvNeXt": (
        lambda: from_transformers("ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
        64,
    ),
}


SLOW = ("resnet, bottlenecks", "efficientnet", "repvgg", "mixer", "coatnet", "maxvit", "densenet")


def images_for(name, count=6):
    return torch.randn(count, 3, BACKBONES[name][1], BACKBONES[name][1])


@torch.no_grad()
def spread_logits(model, images):
    """Make every exit's logits differ from image to image by about 2; those of fresh networks hardly do."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, torch.nn.Linear) and module.out_features == CLASSES:
            torch.nn.init.normal_(module.weight)
    model.train()(images)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    for stage, logits in zip(model.stages, model.eval()(images), strict=True):
        mean, scale = logits.mean(0), 2 / logits.std(0).mean()
        for module in stage.head.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == CLASSES:
                module.weight *= scale
                module.bias.copy_((module.bias - mean) * scale)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BACKBONES],
)
def case(request):
    """Name, backbone, and the network with three exits made of it."""
    torch.manual_seed(0)
    build, size = BACKBONES[request.param]
    backbone = build()
    model = add_exits(backbone, exits=3, input_shape=(3, size, size))
    spread_logits(model, images_for(request.param, 16))
    return request.param, backbone, model


def test_the_last_exit_is_the_backbone(case):
    name, backbone, model = case
    images = images_for(name)
    with torch.no_grad():
        backbone.eval()
        model.eval()
        expected = logits_of(backbone(images))
        assert torch.equal(model(images)[-1], expected)
        assert torch.equal(model.forward_last(images[:1]), logits_of(backbone(images[:1])))


def test_training_mode_is_the_backbones(case):
    name, backbone, model = case
    images = images_for(name)
    buffers = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        backbone.train()
        torch.manual_seed(3)
        expected = logits_of(backbone(images))
        after = {key: value.clone() for key, value in backbone.state_dict().items()}
        backbone.load_state_dict(buffers)
        model.train()
        torch.manual_seed(3)
        assert torch.equal(model.forward_last(images), expected)
        torch.testing.assert_close(backbone.state_dict(), after, rtol=0, atol=0)


def test_stages_and_runner_decide_as_the_whole(case):
    name, _, model = case
    model.eval()
    images = images_for(name, 20)
    outputs = collect_outputs(model, [(images, torch.zeros(20, dtype=torch.int64))])
    policy = calibrate_proportions(outputs.confidences, [0.4, 0.3, 0.3])
    assert_decides_as_simulated(model, images, outputs, policy, batch_size=20, safe_share=0.5)


def test_two_steps_change_backbone_heads_and_weight_network(case):
    name, _, original = case
    model = copy.deepcopy(original).train()
    method = create_method("meta-weighted", proportions=[0.4, 0.3, 0.3], hidden=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = {key: value.clone() for key, value in model.named_parameters()}
    weights = {key: value.clone() for key, value in method.network.named_parameters()}
    for index in range(2):
        for halves in half_batches(images_for(name, 8), torch.randint(CLASSES, (8,))):
            step = half_step(model, optimizer, method, *halves, index)
            assert bool(step.taken)
    after = dict(model.named_parameters())
    for k, stage in enumerate(model.stages):
        for part in ("body", "head"):
            names = [f"stages.{k}.{part}.{key}" for key, _ in getattr(stage, part).named_parameters()]
            assert not names or any(not torch.equal(before[key], after[key]) for key in names), (k, part)
    changed = [not torch.equal(weights[key], value) for key, value in method.network.named_parameters()]
    assert any(changed)


def test_forward_mode_equals_double_backward(case):
    name, _, original = case
    model = copy.deepcopy(original).double().train()
    images, targets = images_for(name, 8).double(), torch.randint(CLASSES, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    gradients = []
    for mode in ("forward", "double-backward"):
        # Only the plain attention kernel can be differentiated twice; forward mode chooses its own.
        with sdpa_kernel(SDPBackend.MATH if mode == "double-backward" else list(SDPBackend.__members__.values())[:3]):
            torch.manual_seed(1)
            run = train_pass(model, images[:4], targets[:4], keep=mode == "forward")
            meta = (images[4:], targets[4:])
            torch.manual_seed(2)
            weights = torch.ones_like(run.losses)
            try:
                found = meta_gradient(model, optimizer, run, weights, meta, [0.4, 0.3, 0.3], mode=mode)
            except UserError as error:
                if mode == "double-backward" and "is not implemented" in str(error):
                    pytest.skip(f"only forward mode can do this network: {error}")
                raise
            gradients.append(found.weights)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4 * float(gradients[1].abs().max()))


def test_saved_and_loaded_gives_the_same(case, tmp_path):
    name, _, model = case
    model.eval()
    images = images_for(name)
    save_checkpoint(tmp_path / "c", {"model": model.state_dict()})
    build, size = BACKBONES[name]
    torch.manual_seed(9)
    again = add_exits(build(), exits=3, input_shape=(3, size, size)).eval()
    again.load_state_dict(load_checkpoint(tmp_path / "c")["model"])
    with torch.no_grad():
        assert all(map(torch.equal, again(images), model(images)))
