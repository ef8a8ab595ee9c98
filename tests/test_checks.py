"""What is known without torch is what the library has."""

import pytest
import torch

from exitwise.checks import BACKBONE_EXITS, LIBRARIES, NETWORKS
from exitwise.config import Settings, resolve
from exitwise.models import create_model, list_models
from exitwise.models.zoo import _LIBRARIES


def test_the_networks_are_those_that_can_be_made():
    with torch.device("meta"):
        assert {name: create_model(name).exits for name in list_models()} == NETWORKS
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
