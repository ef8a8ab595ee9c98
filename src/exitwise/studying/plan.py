"""The plan of a study: a YAML file that says all before anything runs. Needs no torch.

::

    stage: select                 # select: judged on calibration images; confirm: on test images
    recipes: [mnist1d]            # or recipes with settings of their own
    seeds: [0, 1, 2, 3, 4]
    baseline: uniform
    variants:                     # or methods by name
      uniform: {}
      distilled: {distil: 0.5}
    rule: {at: curve, equal: time, recipes: 1}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from exitwise.catalogue.methods import method_names
from exitwise.errors import UserError, near_match
from exitwise.settings.compose import compose
from exitwise.settings.ranges import Seed
from exitwise.settings.schema import Settings, explain
from exitwise.settings.yaml import read_mapping

Stage = Literal["select", "confirm"]
Equal = Literal["updates", "time"]
Place = Literal["first exit", "last exit", "cheapest quarter", "dearest quarter", "curve"]
Changes = dict[str, dict[str, Any]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """What a variant must do to be called better than the baseline: gain somewhere, on so many recipes."""

    at: Place = "curve"
    equal: Equal = "time"
    recipes: Annotated[int, Field(ge=1)] = 1


class Plan(_Strict):
    """A study.

    Attributes:
        stage: which images judge: those of calibration, to select by, or those of the test, to confirm by.
        recipes: settings that are otherwise than in a recipe, by a name, which is the recipe's or beside ``recipe``.
        variants: settings of each, by a name of its own.
        baseline: the variant that the others are compared with.
        seeds: of the trainings.
        settings: of all runs.
        splits: whether held-out images are the same for all seeds, or drawn anew for each.
        equal: what is made equal when a variant is compared with the baseline.
        rule: by which a variant is chosen.
    """

    stage: Stage
    recipes: Annotated[Changes, Field(min_length=1)]
    variants: Annotated[Changes, Field(min_length=2)]
    baseline: str = "uniform"
    seeds: Annotated[list[Seed], Field(min_length=1)]
    settings: dict[str, Any] = Field(default_factory=dict)
    splits: Literal["same", "drawn"] = "same"
    equal: Annotated[list[Equal], Field(min_length=1)] = ["updates", "time"]
    rule: Rule = Rule()

    @field_validator("recipes", "variants", mode="before")
    @classmethod
    def _by_name(cls, given: Any, info: Any) -> Any:
        """Return names as mappings: recipes as they are, variants as methods."""
        if not isinstance(given, list):
            return {name: value or {} for name, value in given.items()} if isinstance(given, Mapping) else given
        if len(set(map(str, given))) < len(given):
            raise ValueError(f"expected different {info.field_name}; got {', '.join(map(str, given))}")
        if info.field_name == "recipes":
            return {str(name): {} for name in given}
        for name in given:
            if name not in method_names():
                raise ValueError(f"unknown variant {name!r}; {near_match(str(name), method_names())}")
        return {name: {"method": name} for name in given}

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.baseline not in self.variants:
            raise ValueError(f"unknown baseline {self.baseline!r}; {near_match(self.baseline, self.variants)}")
        for name in ("seeds", "equal"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"expected different {name}; got {', '.join(map(str, values))}")
        if self.rule.equal not in self.equal:
            raise ValueError(f"rule: expected equal among {', '.join(self.equal)}; got {self.rule.equal}")
        if self.rule.recipes > len(self.recipes):
            raise ValueError(f"rule: expected at most {len(self.recipes)} recipes; got {self.rule.recipes}")
        for layer in (self.settings, *self.recipes.values(), *self.variants.values()):
            fixed = next(
                (key for key in ("seed", *(["split_seed"] if self.splits == "drawn" else [])) if key in layer), None
            )
            if fixed is not None:
                raise ValueError(f"{fixed} is given by seeds; got {fixed} {layer[fixed]!r} too")
        return self

    @property
    def others(self) -> list[str]:
        """Return the names of all variants but the baseline."""
        return [name for name in self.variants if name != self.baseline]

    def run(self, recipe: str, variant: str, seed: int) -> Settings:
        """Return the settings of a run as long as the recipe says.

        Raises:
            UserError: for settings that are unknown or do not go together, naming the recipe and the variant.
        """
        changes = {key: _expanded(value) for key, value in self.recipes[recipe].items()}
        named = changes.pop("recipe", recipe)
        flags = {**self.variants[variant], "seed": seed}
        if self.splits == "drawn":
            flags["split_seed"] = seed
        try:
            return compose(named, {**self.settings, **changes}, flags)
        except UserError as error:
            raise UserError(f"recipe {recipe}, variant {variant}: {error}") from error


@dataclass(frozen=True)
class Task:
    """A run of a study.

    Attributes:
        recipe, variant, seed: which.
        updates: loaded batches to train on.
        settings: all of them.
    """

    recipe: str
    variant: str
    seed: int
    updates: int
    settings: Settings

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Return what sets a run apart from the others of a study."""
        return self.recipe, self.variant, self.seed, self.updates

    def folder(self, out: Path) -> Path:
        """Return its run folder in that of the study."""
        return out / _slug(self.recipe) / f"{_slug(self.variant)}-{self.updates}-{self.seed}"


def read_plan(source: str | Path | Mapping[str, Any]) -> Plan:
    """Return the plan of a YAML file, or of its content, with all settings checked.

    Raises:
        UserError: if it is no plan, or one of its runs could not be trained as it says.
    """
    where = "the study" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_mapping(source, "a study")
    try:
        plan = Plan.model_validate(dict(content))
    except ValidationError as error:
        said = error.errors()[0].get("ctx", {}).get("error")  # of a check of ours
        raise UserError(f"{where}: {said or explain(error).removeprefix('setting ')}") from error
    try:
        for recipe in plan.recipes:
            for variant in plan.variants:
                plan.run(recipe, variant, plan.seeds[0])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    _check_apart(plan, where)
    _check_timed(plan, where)
    return plan


def _check_apart(plan: Plan, where: str) -> None:
    """Raise UserError for two names that would share a folder, or two variants that are the same."""
    for names in (plan.recipes, plan.variants):
        slugs = {_slug(name): name for name in names}
        if len(slugs) < len(names):
            twin = next(name for name in names if slugs[_slug(name)] != name)
            raise UserError(f"{where}: expected names that differ in a letter or digit; got {twin!r} and another")
    recipe = next(iter(plan.recipes))
    runs = {name: plan.run(recipe, name, plan.seeds[0]) for name in plan.variants}
    for (one, mine), (other, theirs) in combinations(runs.items(), 2):
        if mine == theirs:
            raise UserError(f"{where}: expected variants that differ in a setting; {one} and {other} do not")


def _check_timed(plan: Plan, where: str) -> None:
    """Raise UserError for a variant whose training cannot be made longer as it is."""
    for recipe in plan.recipes if "time" in plan.equal else ():
        for variant in plan.variants:
            if plan.run(recipe, variant, plan.seeds[0]).backbone_epochs is not None:
                raise UserError(
                    f"{where}: expected other regimes than mixed at equal time, whose backbone_epochs would have to "
                    f"grow too; got variant {variant} of recipe {recipe}"
                )


def _expanded(value: Any) -> Any:
    """Return a text with the environment's variables in it, such as ``$DATA/flowers``."""
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise UserError(f"expected the variables of {value!r} in the environment; some are not set")
    return expanded


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
