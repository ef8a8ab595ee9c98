"""``exitwise methods``."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.table import Table

from exitwise.catalogue.methods import find_method, method_names
from exitwise.errors import UserError
from exitwise.shown import text_of


def methods() -> None:
    """List the training methods with their options.

    Example:

        exitwise methods
    """
    table = Table(show_lines=True)
    for column in ("method", "what it does", "options and their defaults"):
        table.add_column(column, overflow="fold")
    for name in method_names():
        try:
            part = find_method(name)
        except UserError as error:  # another package registers what it has not
            table.add_row(name, str(error), "")
            continue
        options = (f"{each.name} {text_of(each.default)}" for each in fields(part.options))
        table.add_row(name, part.summary, ", ".join(options))
    console = Console()
    console.print(table)
    console.print("choose one with --method; `exitwise train --help` says what the options mean")
