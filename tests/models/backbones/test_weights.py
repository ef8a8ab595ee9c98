import pytest
import timm
import torch
from torch import nn

from exitwise import add_exits
from exitwise.errors import UserError
from exitwise.models.backbones.weights import load_exited, load_weights


def network(classes=5):
    return timm.create_model("resnet10t", num_classes=classes)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return network().state_dict()


def renamed(state, rename):
    return {rename(name): value for name, value in state.items()}


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, on several devices": lambda name: f"module._orig_mod.{name}",
    "a compiled part": lambda name: name.replace("layer2.", "layer2._orig_mod."),
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"net._orig_mod.{name}",
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
def test_prefixes_of_wrappers(state, rename):
    loaded = network()
    load_weights(loaded, renamed(state, rename), "file", 5)
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)


def test_of_a_network_and_its_average_the_average_is_taken(state):
    average = {name: value + 1 for name, value in state.items()}
    both = renamed(state, lambda name: f"model.{name}") | renamed(average, lambda name: f"ema_model.module.{name}")
    loaded = network()
    load_weights(loaded, {**both, "n_averaged": torch.tensor(3), "criterion.weight": torch.ones(5)}, "file", 5)
    torch.testing.assert_close(loaded.state_dict(), average, rtol=0, atol=0)


def test_what_torch_averages(state):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    averaged.module.load_state_dict(state)
    loaded = network()
    load_weights(loaded, averaged.state_dict(), "file", 5)
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)


def test_a_network_that_has_a_module_of_such_a_name_itself(state):
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

    loaded = Holds()
    load_weights(loaded, renamed(state, lambda name: f"module.{name}"), "file", 5)
    torch.testing.assert_close(loaded.module.state_dict(), state, rtol=0, atol=0)


def test_old_files_and_files_without_classifier(state):
    loaded = network(3)
    kept = {name: value for name, value in state.items() if "num_batches" not in name and not name.startswith("fc.")}
    load_weights(loaded, kept, "file", 3)
    assert torch.equal(loaded.conv1[0].weight, state["conv1.0.weight"])
    assert 0 < loaded.fc.weight.abs().max() < 0.01


def test_what_lacks_is_named_and_nothing_changes(state):
    loaded = network()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    part = {name: value for name, value in state.items() if not name.startswith("layer2.")}
    with pytest.raises(UserError, match=r"expected weights of ResNet in file; it lacks layer2\..* and \d+ more"):
        load_weights(loaded, part, "file", 5)
    with pytest.raises(UserError, match="it has the unknown extra"):
        load_weights(loaded, {**state, "extra": torch.ones(1)}, "file", 5)
    torch.testing.assert_close(loaded.state_dict(), before, rtol=0, atol=0)


def exited(classes=5, **options):
    torch.manual_seed(0)
    return add_exits(network(classes), input_shape=(3, 64, 64), **options)


def test_weights_of_another_network_with_exits():
    source = exited(exits=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for param in source.parameters():
            param.normal_(0, 0.1)
    state = source.state_dict()
    same = exited(exits=3)
    load_exited(same, state, "runs/a")
    torch.testing.assert_close(same.state_dict(), state, rtol=0, atol=0)
    images = torch.randn(2, 3, 64, 64)
    elsewhere = exited(exits=4)
    load_exited(elsewhere, state, "runs/a")
    assert torch.equal(elsewhere.eval()(images)[-1], source.eval()(images)[-1])
    others = exited(3, exits=3)
    load_exited(others, state, "runs/a")
    assert torch.equal(others.stages[0].head.conv[-1][0].weight, source.stages[0].head.conv[-1][0].weight)
    for logits in others.eval()(images):
        assert logits.shape == (2, 3)
        assert logits.abs().max() < 1
    with pytest.raises(UserError, match=r"expected .* in runs/a; (it lacks it|there it is)"):
        load_exited(add_exits(timm.create_model("resnet18"), exits=3, input_shape=(3, 64, 64)), state, "runs/a")
