"""``exitwise methods``."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.table import Table

from exitwise.catalogue.axes import AXES
from exitwise.catalogue.methods import find_method, method_names
from exitwise.errors import UserError
from exitwise.shown import text_of


def methods() -> None:
    """List what training methods are made of, with options: one choice on each axis.

    Example:

        exitwise methods
    """
    console = Console()
    for setting, axis in AXES.items():
        table = Table(title=axis.title.capitalize(), show_lines=True)
        for column in (setting, "what it does", "options and their defaults"):
            table.add_column(column, overflow="fold")
        for name in method_names() if setting == "method" else axis.parts:
            try:
                part = find_method(name) if setting == "method" else axis.parts[name]
            except UserError as error:  # another package registers what it has not
                table.add_row(name, str(error), "")
                continue
            options = (f"{each.name} {text_of(each.default)}" for each in fields(part.options))
            table.add_row(name, part.summary, ", ".join(options))
        console.print(table)
    flags = ", ".join(f"--{setting}" for setting in AXES)
    console.print(f"choose with {flags}, which combine freely; `exitwise train --help` says what the options mean")
