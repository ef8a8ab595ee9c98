"""What is known without torch is what the library has."""

import pytest
import torch

from exitwise.catalogue.backbones import BACKBONE_EXITS, LIBRARIES, check_defined
from exitwise.catalogue.models import MODELS
from exitwise.errors import UserError
from exitwise.models import create_model, list_models
from exitwise.models.backbones.libraries import _LIBRARIES
from exitwise.settings.schema import Settings, resolve


def test_the_networks_are_those_that_can_be_made():
    with torch.device("meta"):
        assert {name: create_model(name).exits for name in list_models()} == {e.name: e.exits for e in MODELS.values()}
    assert tuple(_LIBRARIES) == LIBRARIES


@pytest.mark.parametrize(
    ("settings", "exits"),
    [
        ({}, 4),
        ({"model": "ranet_cifar_8"}, 8),
        ({"model": "timm/resnet18"}, BACKBONE_EXITS),
        ({"model": "timm/resnet18", "exits": 3}, 3),
        ({"model": "timm/resnet18", "exits_at": ["layer2"]}, 2),
    ],
)
def test_exits_are_counted(settings, exits):
    assert resolve({"data": "./photos", **settings}).exit_count == exits


def test_a_backbone_has_the_default_number_of_exits():
    settings = Settings(model="timm/resnet18", data="./photos", image_size=64, mean=[0.5] * 3, std=[0.5] * 3)
    assert create_model(settings.model, input_shape=(3, 64, 64), num_classes=3).exits == settings.exit_count


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_every_backbone_of_a_library_is_taken(library):
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    names = timm.list_models() if library == "timm" else models.list_models(module=models)
    for name in names[:: len(names) // 9]:
        check_defined(library, name)
    check_defined("timm", "resnet18.a1_in1k")
    check_defined("timm", "vit_tiny_patch16_224_in21k")  # a former name
    check_defined("no_such_library", "resnet18")
    with pytest.raises(UserError, match=f"unknown model '{library}/resnet505'; did you mean 'resnet50'"):
        check_defined(library, "resnet505")
