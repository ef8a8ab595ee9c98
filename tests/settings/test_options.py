"""An option counts only with a method that has it: a recipe's is dropped, a user's refused, an old run's left out."""

import pytest
import yaml

from exitwise.catalogue.axes import option_owners
from exitwise.catalogue.methods import METHODS
from exitwise.errors import UserError
from exitwise.settings.compose import compose
from exitwise.settings.schema import Settings, resolve
from exitwise.settings.yaml import read_yaml, to_yaml

STRANGER = "epsilon is an option of method meta-weighted, meta-weighted-shared; method is uniform"


def test_a_flag_of_another_method_is_refused():
    with pytest.raises(UserError, match=STRANGER):
        compose(None, flags={"method": "uniform", "epsilon": 0.8})
    with pytest.raises(UserError, match="exit_weights is an option of method uniform; method is meta-weighted"):
        compose(None, flags={"method": "meta-weighted", "exit_weights": [1, 1, 1, 1]})


def test_a_file_s_option_of_another_method_is_refused():
    for content in ({"epsilon": 0.5}, {"method": "uniform", "epsilon": 0.5}):
        with pytest.raises(UserError, match=STRANGER):
            compose(None, content, {"method": "uniform"})


def test_a_recipe_s_option_counts_with_the_method_that_has_it():
    weighted = compose("imagenet_msdnet_step4", flags={"data": "./photos", "method": "meta-weighted"})
    assert (weighted.options.epsilon, weighted.options.meta_interval) == (0.3, 100)
    settings = compose("imagenet_msdnet_step4", flags={"data": "./photos"})
    assert settings.options == METHODS["uniform"].options()
    assert "epsilon" not in settings.stated()


def test_a_file_made_for_a_method_can_be_used_with_another_by_a_flag():
    content = yaml.safe_load(to_yaml(compose("digits", flags={"method": "meta-weighted", "epsilon": 0.3})))
    assert content["epsilon"] == 0.3
    assert compose(None, content, {"method": "meta-weighted-shared"}).options.epsilon == 0.3
    assert compose(None, content, {"method": "uniform"}).method == "uniform"
    with pytest.raises(UserError, match=STRANGER):
        compose(None, content, {"method": "uniform", "epsilon": 0.3})


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_can_be_read(method, tmp_path):
    settings = compose("cifar10_msdnet5_authors", flags={"method": method})
    (tmp_path / "c.yaml").write_text(to_yaml(settings))
    content = read_yaml(tmp_path / "c.yaml")
    assert resolve(content) == compose(None, content) == settings
    assert {name for name, owners in option_owners().items() if method in owners.parts} <= set(content)


@pytest.mark.parametrize("method", METHODS)
def test_files_of_old_runs_stated_the_options_of_all_methods(method, tmp_path):
    old = {key: value for key, value in Settings().model_dump().items() if key != "method_options"}
    old |= {"method": method, "centering": "all", "meta_interval": 100}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(old))
    content = read_yaml(tmp_path / "c.yaml")
    assert resolve(content) == compose(None, content)
    if "meta_interval" in vars(METHODS[method].options()):
        assert resolve(content).options.meta_interval == 100
    else:
        assert resolve(content).stated() == resolve({"method": method}).stated()


def test_options_of_a_method_from_elsewhere_are_not_for_one_of_ours():
    with pytest.raises(UserError, match="method_options are of methods from elsewhere; method is uniform"):
        resolve({"method": "uniform", "method_options": {"gamma": 1}})
