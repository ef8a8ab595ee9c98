"""What the catalogue says is so: a new entry is tested by being there."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from torch.nn import Module

from exitwise.catalogue.axes import AXES, option_owners
from exitwise.catalogue.backbones import LIBRARIES
from exitwise.catalogue.commands import COMMANDS
from exitwise.catalogue.flows import FLOWS
from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.links import LINKS
from exitwise.catalogue.lookup import find
from exitwise.catalogue.losses import LOSSES
from exitwise.catalogue.measures import MEASURES
from exitwise.catalogue.methods import DEFAULT, METHODS, MetaWeightedOptions
from exitwise.catalogue.models import MODELS
from exitwise.catalogue.recipes import RECIPES
from exitwise.catalogue.schedules import SCHEDULES
from exitwise.catalogue.sources import FOLDER, SOURCES, NamedData
from exitwise.errors import UserError
from exitwise.methods import GradientFlow, Method
from exitwise.methods.schedules.base import Schedule
from exitwise.models import count_cost, create_model
from exitwise.models.backbones.libraries import _LIBRARIES
from exitwise.settings.compose import compose, get_recipe
from exitwise.settings.fields import Fields
from exitwise.settings.schema import resolve
from exitwise.weighting.allocation import Objective
from exitwise.weighting.losses import Loss
from exitwise.weighting.network import WeightInput
from exitwise.weighting.normalize import Centering
from exitwise.weighting.tangents import GradientMode

KINDS = {
    "model": MODELS,
    "method": METHODS,
    "flow": FLOWS,
    "loss": LOSSES,
    "regime": SCHEDULES,
    "handed_on": LINKS,
    "measure": MEASURES,
    "source": SOURCES | {"folder": FOLDER},
    "format": FORMATS,
    "recipe": RECIPES,
    "command": COMMANDS,
}
PARTS = {"method": Method, "flow": GradientFlow, "loss": Loss, "regime": Schedule, "handed_on": Module}
ENTRIES = [(kind, entry) for kind, entries in KINDS.items() for entry in entries.values()]


@pytest.mark.parametrize(("kind", "entry"), ENTRIES, ids=[f"{kind} {entry.name}" for kind, entry in ENTRIES])
def test_every_entry_leads_to_its_code(kind, entry):
    found = entry.load()
    assert callable(found)
    assert entry.summary
    assert "\n" not in entry.summary
    if kind == "command":
        assert inspect.getdoc(found).split("\n\n")[0].replace("\n", " ") == entry.summary
    if kind in PARTS:
        assert issubclass(found, PARTS[kind])
        assert getattr(found, "options", entry.options) is entry.options


def cost(name):
    counted = count_cost(create_model(name))
    return counted.params[-1], counted.macs


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.macs[-1] < 5e7])
def test_costs_are_those_counted(name):
    assert cost(name) == (MODELS[name].params, MODELS[name].macs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.macs[-1] >= 5e7])
def test_costs_of_large_networks_are_those_counted(name):
    assert cost(name) == (MODELS[name].params, MODELS[name].macs)


def test_choices_are_those_of_the_code():
    types = {"objective": Objective, "gradient": GradientMode, "wpn_input": WeightInput, "centering": Centering}
    for name, choices in types.items():
        assert set(get_args(Fields.model_fields[name].annotation)) == set(get_args(choices)), name
    assert tuple(_LIBRARIES) == LIBRARIES


def test_no_option_is_of_two_axes():
    names = [{field.name for part in axis.parts.values() for field in fields(part.options)} for axis in AXES.values()]
    assert sum(map(len, names)) == len(set().union(*names)) == len(option_owners())


def test_each_option_is_a_setting_with_its_range_and_default():
    defaults = MetaWeightedOptions()
    for name, value in vars(defaults).items():
        field = Fields.model_fields[name]
        assert field.default == value
        assert field.description.endswith("[method meta-weighted, meta-weighted-shared]")


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_each_data_set_has_settings_to_train_with(source):
    settings = compose(None, flags={"data": source.name})
    recipe = get_recipe(source.recipe) | source.settings
    assert settings == resolve(recipe, {"data": source.name})
    assert len(settings.mean) == source.channels
    assert settings.augment == "resize" or settings.image_size == source.side


def test_settings_of_a_data_set_are_those_of_its_recipe_but_for_its_own(monkeypatch):
    stars = NamedData("stars", "stars", "stars:open_stars", 1, 8, "digits", {"mean": [0.1], "std": [0.2]})
    monkeypatch.setitem(SOURCES, "stars", stars)
    usual = RECIPES["digits"].load()()
    assert compose(None, flags={"data": "stars"}) == resolve(usual, {"data": "stars", "mean": [0.1], "std": [0.2]})
    assert compose(None, {"mean": [0.3]}, {"data": "stars"}).mean == [0.3]
    assert compose("digits", flags={"data": "stars"}) == resolve(usual, {"data": "stars"})


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="unknown format 'onx'; did you mean 'onnx'"):
        find(FORMATS, "onx", "format")


def test_what_the_readme_says_of_methods_the_catalogue_says():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.findall(r"^\| `(\S+)` \| (.*) \|$", readme, re.MULTILINE)
    assert DEFAULT in dict(shown)
    assert set(shown) <= {(part.name, part.summary) for part in METHODS.values()}
