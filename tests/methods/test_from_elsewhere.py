"""Methods of other packages: by their path, or registered by an entry point."""

import sys

import pytest
import torch
import yaml

from exitwise.errors import UserError
from exitwise.methods import create_method, list_methods
from exitwise.settings.compose import compose
from exitwise.settings.schema import resolve
from exitwise.training.step import half_batches, half_step
from exitwise.workflows import train as workflow

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from exitwise.catalogue.options import Options, option
from exitwise.methods import Method, Weighting


@dataclass(frozen=True)
class FocalOptions(Options):
    weighs_alone: ClassVar[bool] = True
    gamma: float = option(1.0, "How much hard samples count.", ge=0)


class Focal(Method):
    """Hard samples count more.

    Not more than that.
    """

    options = FocalOptions

    def __init__(self, gamma=1.0):
        self.gamma = gamma

    def weigh(self, model, optimizer, run, meta, index):
        return Weighting((1 - run.confidences) ** self.gamma)


def halved(run):
    """All samples count half."""
    return 0.5 * run.losses.detach() ** 0


half = Method.from_function(halved)
number = 3
'''
FLAGS = {"epochs": 1, "max_iterations": 2, "device": "cpu"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package, and the record that an installer writes of it."""
    (tmp_path / "elsewhere.py").write_text(METHOD)
    record = tmp_path / "elsewhere-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[exitwise.methods]\nfocal = elsewhere:Focal\nlost = elsewhere:Lost\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("elsewhere", None)


@pytest.mark.parametrize("name", ["elsewhere:Focal", "focal"])
def test_trains_with_its_options(name, package, tmp_path):
    settings = compose("digits", {"method": name, "method_options": {"gamma": "2"}, "accumulate": 2}, FLAGS)
    assert settings.options.gamma == 2.0
    run = workflow.train(settings, tmp_path / "run").run
    written = yaml.safe_load(run.config_path.read_text())
    assert (written["method"], written["method_options"]) == (name, {"gamma": 2.0})
    assert "epsilon" not in written
    assert run.settings == settings
    assert workflow.train(settings, tmp_path / "run").resumed


def test_a_run_is_read_where_its_method_is_not_installed(package):
    settings = {"method": "no_such_package:Focal", "method_options": {"gamma": 2.0}}
    assert resolve(settings).method == "no_such_package:Focal"
    with pytest.raises(UserError, match="expected a training method at no_such_package:Focal; No module named"):
        compose("digits", settings)


def test_a_function_is_a_method(package):
    model = torch.nn.ModuleList([torch.nn.Linear(4, 3)])
    model.forward = lambda x: [layer(x) for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for halves in half_batches(torch.randn(8, 4), torch.randint(3, (8,))):
        step = half_step(model, optimizer, create_method("elsewhere:half"), *halves, 0)
        assert step.weights.tolist() == [[0.5]] * 4
    assert compose("digits", flags={"method": "elsewhere:half"}).options == create_method("elsewhere:half").options()


def test_it_is_listed(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert list_methods()[-2:] == ["focal", "lost"]
    from exitwise.cli import main

    with pytest.raises(SystemExit):
        main(["methods"])
    output = capsys.readouterr().out
    assert "Hard samples count more." in output
    assert "gamma 1.0" in output
    assert "expected a training method at" in output


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "elsewhere:Fokal"}, "expected a training method at elsewhere:Fokal; module 'elsewhere' has no"),
        ({"method": "elsewhere:number"}, "expected a training method at elsewhere:number; got 3"),
        ({"method": "fokal"}, "input should be 'uniform', .*, or package.module:name; got 'fokal'"),
        ({"method": "focal", "method_options": {"gama": 1}}, "unknown option 'gama' of focal; did you mean 'gamma'"),
        ({"method": "focal", "method_options": {"gamma": -1}}, "setting gamma: input should be greater than or equal"),
        ({"method": "focal", "epsilon": 0.3}, "epsilon is an option of method meta-weighted, .*; method is focal"),
        ({"method": "elsewhere:half", "accumulate": 2}, "accumulate goes with method uniform.*; got elsewhere:half"),
    ],
)
def test_mistakes_are_named(values, message, package):
    with pytest.raises(UserError, match=message):
        compose("digits", values)
