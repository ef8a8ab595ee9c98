"""Exits in a file of their own: what is put back is what was saved, and other files and networks are refused."""

import re
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import exitwise as ew
from exitwise.errors import ExitwiseWarning, UserError


def small():
    torch.manual_seed(3)
    return timm.create_model("resnet10t", num_classes=3).eval()


def exited(network, **options):
    torch.manual_seed(4)
    return ew.add_exits(network, exits=3, input_shape=(3, 32, 32), **options).eval()


class Signals(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, left, right):
        return self.out(torch.relu(self.second(torch.relu(self.first(left + right)))))


@pytest.mark.parametrize("options", [{}, {"head": "linear"}, {"skip": False}])
def test_what_is_put_back_answers_bit_for_bit(options, tmp_path):
    network = small()
    model = exited(network, **options)
    for stage in model.stages[:-1]:
        nn.init.normal_(list(stage.head.parameters())[-2])
    ew.save(model, tmp_path / "exits.safetensors")
    assert (tmp_path / "exits.safetensors").stat().st_size < 4 * sum(p.numel() for p in network.parameters()) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ew.load(small(), tmp_path / "exits.safetensors").eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert all(map(torch.equal, again(images), model(images)))
    assert again.points == model.points
    assert again.skips == model.skips


def test_samples_that_exits_were_fitted_on_are_still_known(tmp_path):
    generator = torch.Generator().manual_seed(1)
    train = [(torch.randn(40, 3, 32, 32, generator=generator), torch.arange(40) % 3)]
    model = exited(small())
    ew.fit_exits(model, train, epochs=1)
    ew.save(model, tmp_path / "exits.safetensors")
    again = ew.load(small(), tmp_path / "exits.safetensors").eval()
    assert again.fitted_on == model.fitted_on != set()
    with pytest.raises(ew.DataError, match="expected samples in the held-out loader that nothing was fitted on; 40 of"):
        ew.calibrate(again, train, budget=0.7)


def test_names_of_earlier_versions_are_known():
    model, other = exited(small()), exited(small())
    nn.init.ones_(model.stages[0].body.get_submodule("conv1.0").weight)
    former = {
        re.sub(r"(?<=body\.)(.*)(?=\.)", lambda m: m[0].replace(".", "_"), k): v for k, v in model.state_dict().items()
    }
    assert "stages.0.body.conv1_0.weight" in former
    other.load_state_dict(former)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**former, "stages.9.odd": torch.zeros(1)})


def test_inputs_with_names(tmp_path):
    network = Signals().eval()
    example = {"left": torch.zeros(1, 6), "right": torch.ones(1, 6)}
    model = ew.add_exits(network, at=["first"], example=example).eval()
    ew.save(model, tmp_path / "exits.safetensors")
    again = ew.load(network, tmp_path / "exits.safetensors")
    assert again.example.keys() == example.keys()
    with torch.no_grad():
        assert all(map(torch.equal, again.eval()(example), model(example)))


def test_exits_of_a_kind_of_one_s_own(tmp_path):
    def make(feature, classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(feature.channels, classes))

    model = exited(small(), head=make)
    ew.save(model, tmp_path / "exits.safetensors")
    with pytest.raises(UserError, match="of a kind of your own: expected head=, the function that made them"):
        ew.load(small(), tmp_path / "exits.safetensors")
    images = torch.randn(2, 3, 32, 32)
    again = ew.load(small(), tmp_path / "exits.safetensors", head=make).eval()
    with torch.no_grad():
        assert all(map(torch.equal, again(images), model(images)))


def test_other_weights_are_told(tmp_path):
    ew.save(exited(small()), tmp_path / "exits.safetensors")
    other = small()
    nn.init.ones_(other.fc.weight)
    with pytest.warns(ExitwiseWarning, match="were saved with other weights of the network: fit and calibrate them"):
        ew.load(other, tmp_path / "exits.safetensors")


def test_what_is_refused(tmp_path):
    file = tmp_path / "exits.safetensors"
    with pytest.raises(UserError, match="expected exits that exitwise"):
        ew.load(small(), file)
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="expected exits that exitwise"):
        ew.load(small(), file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="expected exits that exitwise"):
        ew.load(small(), file)
    ew.save(exited(small()), file)
    with pytest.raises(UserError, match="expected a backbone for 3 classes; ResNet has 4"):
        ew.load(timm.create_model("resnet10t", num_classes=4).eval(), file)
    with pytest.raises(UserError, match="at"):
        ew.load(timm.create_model("mobilenetv3_small_050", num_classes=3).eval(), file)
    with pytest.raises(UserError, match="expected a network that add_exits made; got a MSDNet"):
        ew.save(ew.create_model("msdnet_small"), file)
