import pytest
import yaml

from exitwise.catalogue.recipes import RECIPES
from exitwise.errors import UserError
from exitwise.settings.compose import compose, get_recipe
from exitwise.settings.schema import Settings, resolve
from exitwise.settings.yaml import read_yaml, to_yaml


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_survives_yaml(name, tmp_path):
    settings = resolve(get_recipe(name))
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert resolve(read_yaml(tmp_path / "config.yaml")) == settings


def test_the_authors_recipes_are_the_published_settings():
    """Constants of the paper's table: CIFAR 0.8 / 1024 / 300 / exits / 1, ImageNet 0.3 / 4096 / 100 / all / 100."""
    table = {
        "cifar10_msdnet5_authors": (0.8, 1024, 300, "exits", 1),
        "cifar100_msdnet5_authors": (0.8, 1024, 300, "exits", 1),
        "imagenet_msdnet_step4_authors": (0.3, 4096, 100, "all", 100),
        "imagenet_msdnet_step7_authors": (0.3, 4096, 100, "all", 100),
    }
    for name, published in table.items():
        s = resolve(get_recipe(name))
        assert (s.epsilon, s.batch_size, s.epochs, s.centering, s.meta_interval) == published
        assert (s.lr, s.momentum, s.weight_decay, s.nesterov) == (0.8, 0.9, 1e-4, False)
        assert (s.wpn_lr, s.wpn_weight_decay, s.wpn_hidden, s.wpn_layers, s.wpn_input) == (1e-4, 1e-4, 500, 1, "loss")
        assert (s.p, s.objective, s.wpn_zero_init, s.label_smoothing) == (0.75, "per-exit", False, 0.0)


def test_flags_win_over_file_over_recipe():
    settings = compose("digits", {"epochs": 3, "lr": 0.3}, {"lr": 0.5})
    assert (settings.epochs, settings.lr, settings.batch_size) == (3, 0.5, 128)
    assert compose(None, {"recipe": "cifar10_msdnet5"}).model == "msdnet_cifar_5"
    assert compose(None, flags={"data": "cifar100"}).mean == pytest.approx([0.5071, 0.4865, 0.4409])
    assert compose(None, flags={"data": "./photos"}).augment == "resize"


def test_the_recipes_learning_rate_follows_the_batch_size_unless_given():
    assert compose("cifar10_msdnet5", flags={"batch_size": 256}).lr == pytest.approx(0.2)
    assert compose("cifar10_msdnet5", flags={"batch_size": 256, "lr": 0.8}).lr == 0.8


@pytest.mark.parametrize(("recipe", "size"), [("finetune", 224), ("flowers_finetune", 128), ("cifar10_msdnet5", 32)])
def test_images_that_are_not_resized_keep_their_size_under_any_backbone(recipe, size):
    settings = compose(recipe, flags={"data": "cifar10" if size == 32 else "./photos", "model": "timm/resnet18"})
    assert (settings.image_size, settings.mean) == (size, pytest.approx([0.485, 0.456, 0.406]))


WEIGHTED = {"method": "meta-weighted"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"epochs": 0}, "setting epochs: input should be greater than or equal to 1; got 0"),
        ({"lr": -1}, "setting lr: input should be greater than 0; got -1"),
        ({"lr": float("nan")}, "setting lr: .*; got nan"),
        ({"distil_from": "runs/a", "distil": 1.5}, "setting distil: .* less than or equal to 1; got 1.5"),
        ({"distil_from": "runs/a", "distil": 0}, "distil_from needs distil above 0; got 0"),
        ({"distil": 0.5, "distil_temperature": 0}, "setting distil_temperature: .* greater than 0; got 0"),
        ({"distil_temperature": 4}, "distil_temperature is an option of loss distil-last, .*; loss is labels"),
        ({"loss": "distil-run"}, "loss distil-run needs distil_from, the run to learn from; got none"),
        ({"loss": "margin", "distil": 0.3}, "distil is an option of loss distil-last, .*; loss is margin"),
        ({"loss": "distil"}, "setting loss: input should be 'labels', 'distil-last', .*'margin'.*; got 'distil'"),
        (
            {"distil_from": "runs/a", "regime": "heads", "model": "timm/resnet18", "pretrained": "hub"},
            "distil_from goes with other regimes; regime heads keeps features, not images",
        ),
        ({"method": "focal"}, "setting method: input should be 'uniform', .*'meta-weighted'.* or .*; got 'focal'"),
        ({**WEIGHTED, "clip": 1.0}, "clip changes the update that meta-weighted looks ahead to; leave it out"),
        ({**WEIGHTED, "proportions": [0.5, 0.2]}, r"proportions must sum to 1; got \[0.5, 0.2\], which sum to 0.7"),
        ({**WEIGHTED, "p_range": [0.9, 0.3]}, r"p_range needs two numbers, the lower first; got \[0.9, 0.3\]"),
        ({**WEIGHTED, "p_range": [0.3]}, r"p_range needs two numbers, the lower first; got \[0.3\]"),
        ({**WEIGHTED, "p_range": [0.3, 0.9], "proportions": [0.5, 0.5]}, "p_range and proportions exclude one another"),
        ({"mean": [0.1, 0.2]}, "mean and std need one or three values each; got 2 and 1"),
        ({"batch_size": 2}, "greater than or equal to 4; got 2"),
        ({"calibration_fraction": 1.0}, "setting calibration_fraction: input should be less than 1; got 1.0"),
        ({"std": [0.0]}, "setting std.0: input should be greater than 0; got 0.0"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: [1", "expected YAML in"),
        ("- epochs", "expected settings as 'key: value' lines in .*; got a list"),
        ("epochz: 3", "unknown setting 'epochz'; did you mean 'epochs'"),
    ],
)
def test_wrong_files_are_named(content, message, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_missing_file_and_unknown_recipe(tmp_path):
    with pytest.raises(UserError, match="expected a YAML file of settings; found none at"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="unknown recipe 'cifar10_msdnet'; did you mean 'cifar10_msdnet5'"):
        get_recipe("cifar10_msdnet")


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())
    assert yaml.safe_load(to_yaml(Settings())) == Settings().stated()
