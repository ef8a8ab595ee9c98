"""Settings from a recipe, a file and flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exitwise.catalogue.axes import chosen_in, options_of_others
from exitwise.catalogue.backbones import IMAGES
from exitwise.catalogue.lookup import find
from exitwise.catalogue.methods import METHODS
from exitwise.catalogue.recipes import RECIPES, Recipe
from exitwise.catalogue.sources import SOURCES, TEXTS
from exitwise.errors import UserError
from exitwise.settings.checks import check_network
from exitwise.settings.schema import Settings, check_values, is_backbone, resolve

Layer = Mapping[str, Any]


def compose(recipe: str | None, config: Layer | None = None, flags: Layer | None = None) -> Settings:
    """Return settings from a recipe, a configuration file's content and flags, later ones winning.

    Without a named recipe, the data set picks one. Where the batch size is overridden and the learning rate is
    not, the recipe's learning rate is scaled in proportion to the batch size (linear scaling rule, Goyal et al., 2017).

    A recipe may be used with any method: it states options of several, and those of the chosen one count. A file and
    flags mean what they say: each may state options of the method that it names or, if it names none, of the chosen
    one. So a file made for one method can be used with another by a flag, and no option is given in vain. It is the
    same with the other axes (:mod:`exitwise.catalogue.axes`).

    Raises:
        UserError: for an unknown recipe or key, an option of another method, or a value out of range.
    """
    from_file, from_flags = dict(config or {}), dict(flags or {})
    overrides = {**from_file, **from_flags}
    named = overrides.pop("recipe", None)
    data = overrides.get("data")
    model = overrides.get("model")
    for key, value in (("recipe", named), ("data", data), ("model", model)):
        if not isinstance(value, str | None):
            raise UserError(f"setting {key}: input should be a name; got {value!r}")
    overrides |= _in_full(data)
    chosen = recipe or named or recipe_for(data, model, overrides.get("regime"), overrides.get("tokens"))
    base = _recipe(chosen)
    if not (recipe or named) and data in SOURCES and chosen == SOURCES[data].recipe:
        base |= SOURCES[data].settings
    backbone = model or base["model"]
    check_values(overrides)
    check_network(backbone)
    if is_backbone(backbone):
        if {**base, **overrides}.get("tokens") is None:
            base |= _images_for(backbone, base.get("augment", "none"))
        if overrides.get("pretrained") == "none":
            base |= {"backbone_lr_factor": 1.0}
    if "data" not in overrides and base["data"] not in SOURCES:
        what = "table of texts" if base.get("tokens") else "folder of images"
        raise UserError(f"this recipe needs a {what}: give --data")
    chosen_parts = chosen_in(from_flags, chosen_in(from_file, chosen_in(base)))
    in_file = chosen_in(from_file, chosen_parts)
    base = _without(base, options_of_others(chosen_parts))
    overrides = _without(overrides, options_of_others(chosen_parts) - options_of_others(in_file) - set(from_flags))
    overrides |= chosen_parts
    settings = resolve(base, overrides)
    if "lr" not in overrides and settings.batch_size != base["batch_size"]:
        settings = resolve(base, overrides, {"lr": base["lr"] * settings.batch_size / base["batch_size"]})
    return settings if settings.method in METHODS else _completed(settings)


def continued(former: Settings, flags: Layer) -> Settings:
    """Return the settings of a run with those that were given anew, which may be of where and how it goes on."""
    return former.model_copy(update={**flags, **_in_full(flags.get("data"))})


def _in_full(data: str | None) -> dict[str, str]:
    """Return the whole path of data that are no name's, so that the run can be used from any folder."""
    return {"data": str(Path(data).resolve())} if data and data not in SOURCES and Path(data).exists() else {}


def _completed(settings: Settings) -> Settings:
    """Return the settings with all options of their method, which comes from elsewhere, checked."""
    options = settings.options
    options.check(settings.surroundings())
    return settings.model_copy(update={"method_options": vars(options) or None})


def _without(layer: Layer, names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in names}


def get_recipe(name: str) -> Recipe:
    """Return the settings of a recipe, with the options of its own method alone.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    recipe = _recipe(name)
    return _without(recipe, options_of_others(chosen_in(recipe)))


def _recipe(name: str) -> Recipe:
    """Return the settings of a recipe, the options of methods that may be chosen in place of its own among them."""
    return find(RECIPES, name, "recipe").load()()


def recipe_for(data: str | None, model: str | None = None, regime: str | None = None, tokens: int | None = None) -> str:
    """Return the name of the recipe for a data set where none was named; maybe for a backbone, a regime or texts."""
    if tokens or (data is not None and data not in SOURCES and TEXTS.is_at(Path(data))):
        return "text_heads" if regime == "heads" else "texts"
    if model is not None and is_backbone(model):
        return "heads" if regime == "heads" else "finetune"
    return "digits" if data is None else SOURCES[data].recipe if data in SOURCES else "images"


def _images_for(backbone: str, augment: str) -> Recipe:
    """Return how a backbone wants its images, by its library's records; of what size only where they are resized."""
    config = IMAGES.load()(backbone)
    colours = {"mean": list(config.mean), "std": list(config.std)}
    return {**config._asdict(), **colours} if augment == "resize" else colours
