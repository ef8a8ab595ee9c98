"""``exitwise recipes``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from exitwise.catalogue.recipes import RECIPES


def recipes(name: str | None = None) -> None:
    """List the recipes, or print one's settings as YAML.

    Examples:

        exitwise recipes
        exitwise recipes cifar10_msdnet5

    Parameters
    ----------
    name
        A recipe to print.
    """
    if name is not None:
        from exitwise.settings.compose import get_recipe
        from exitwise.settings.schema import resolve
        from exitwise.settings.yaml import to_yaml

        print(to_yaml(resolve(get_recipe(name))), end="")
        return
    table = Table(show_header=False)
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.summary)
    Console().print(table)
