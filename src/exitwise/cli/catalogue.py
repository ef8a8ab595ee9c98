"""``exitwise models`` and ``exitwise recipes``: what there is to choose from."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from exitwise.config import resolve, to_yaml
from exitwise.recipes import RECIPES, get_recipe


def models() -> None:
    """List the networks with the cost of leaving at each exit.

    Example:

        exitwise models
    """
    from exitwise.cli.tables import macs
    from exitwise.models import count_cost, create_model, list_models

    table = Table()
    for name in ("model", "input", "parameters", "MACs to each exit"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name in list_models():
        model = create_model(name)
        cost = count_cost(model)
        shape = "x".join(map(str, model.input_shape))
        table.add_row(name, shape, f"{cost.params[-1] / 1e6:.3g}M", " ".join(macs(value) for value in cost.macs))
    Console().print(table)


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
        print(to_yaml(resolve(get_recipe(name))), end="")
        return
    table = Table(show_header=False)
    for key, recipe in RECIPES.items():
        table.add_row(key, (recipe.__doc__ or "").strip())
    Console().print(table)
