import json
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from exitwise import add_exits, create_model
from exitwise.errors import UserError
from exitwise.models.backbones.libraries import DataConfig, create_backbone, data_config

VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def hf_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    config = transformers.ViTConfig(**VIT, image_size=32, patch_size=8, num_labels=6)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.1, 0.2, 0.3],
        "resample": 3,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "vit"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("timm/vit_tiny_patch16_224", DataConfig(224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)),
        ("timm/resnet18", DataConfig(224, interpolation="bicubic", crop=0.95)),
        ("torchvision/resnet18", DataConfig(224, crop=224 / 256)),
        ("torchvision/vit_b_16", DataConfig(224, crop=224 / 256)),
        ("torchvision/swin_t", DataConfig(224, interpolation="bicubic", crop=224 / 232)),
    ],
)
def test_images_as_the_backbone_wants_them(name, config):
    found = data_config(name)
    assert found.image_size == config.image_size
    assert found.mean == pytest.approx(config.mean)
    assert found.std == pytest.approx(config.std)
    assert found.interpolation == config.interpolation
    assert found.crop == pytest.approx(config.crop)


def test_images_as_a_hugging_face_folder_wants_them(hf_folder):
    found = data_config(f"hf/{hf_folder}")
    assert found == DataConfig(32, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "bicubic", 1.0)


@pytest.mark.parametrize(
    "name",
    ["timm/resnet10t", "timm/vit_tiny_patch16_224", "torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small"],
)
def test_names_make_networks_of_any_size(name):
    model = create_model(name, exits=3, num_classes=4, input_shape=(3, 64, 64)).eval()
    assert [z.shape for z in model(torch.randn(2, 3, 64, 64))] == [(2, 4)] * 3


def test_local_weights_with_another_classifier(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("resnet10t", num_classes=7)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        same = create_backbone("timm/resnet10t", 7, None, tmp_path / file)
        torch.testing.assert_close(same.state_dict(), source.state_dict(), rtol=0, atol=0)
        other = create_backbone("timm/resnet10t", 4, None, tmp_path / file)
        assert torch.equal(other.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
        assert other.fc.weight.shape[0] == 4
        assert 0 < other.fc.weight.abs().max() < 0.01
        assert not other.fc.bias.any()
    del (state := source.state_dict())["fc.weight"], state["fc.bias"]
    save_file(state, tmp_path / "features.safetensors")
    features = create_backbone("timm/resnet10t", 4, None, tmp_path / "features.safetensors")
    assert 0 < features.fc.weight.abs().max() < 0.01
    with pytest.raises(UserError, match=r"it lacks fc\.bias"):
        create_backbone("timm/resnet10t", None, None, tmp_path / "features.safetensors")


@pytest.mark.parametrize("head", ["auto", "linear"])
def test_new_exits_begin_with_equal_probabilities(head):
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    model = add_exits(backbone, exits=3, input_shape=(3, 64, 64), head=head)
    *early, last = model(torch.randn(8, 3, 64, 64))
    for logits in early:
        assert 0 < logits.std() < 0.1
    assert last.std() > 0.1


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"expected weights of ResNet in .*; it lacks"):
        create_backbone("timm/resnet18", 4, None, tmp_path / "w.safetensors")
    narrow = {name: value[:1] for name, value in timm.create_model("resnet10t").state_dict().items() if value.dim()}
    narrow |= {name: value for name, value in timm.create_model("resnet10t").state_dict().items() if not value.dim()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match="it has another shape for"):
        create_backbone("timm/resnet10t", 4, None, tmp_path / "narrow.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="could not read it"):
        create_backbone("timm/resnet10t", 4, None, tmp_path / "junk.safetensors")


def test_a_hugging_face_folder_with_its_weights(hf_folder):
    import transformers

    saved = transformers.ViTForImageClassification.from_pretrained(hf_folder).eval()
    model = create_model(f"hf/{hf_folder}", exits=3, pretrained=True, input_shape=(3, 32, 32)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images)[-1], saved(images).logits)
    fresh = create_model(f"hf/{hf_folder}", exits=3, num_classes=4, pretrained=True, input_shape=(3, 32, 32))
    assert fresh(images)[-1].shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", "unknown model 'timm/resnet19'; did you mean 'resnet18'"),
        ("torchvision/resnet19", "unknown model 'torchvision/resnet19'; did you mean 'resnet18'"),
        ("timn/resnet18", "expected timm/NAME, torchvision/NAME or hf/NAME; got 'timn/resnet18'"),
        ("timm/", "expected timm/NAME"),
        ("hf/./nowhere", r"expected a folder with config.json at ./nowhere"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        create_model(name)


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"this model needs transformers: pip install 'exitwise\[hf\]'"):
        create_model("hf/microsoft/resnet-18")
