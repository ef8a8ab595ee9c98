"""Tables of what there is to choose from, made from the catalogue where a page says ``<!-- table of methods -->``."""

import re
from collections.abc import Mapping
from typing import Any

from exitwise.catalogue.commands import COMMANDS
from exitwise.catalogue.entry import Entry
from exitwise.catalogue.flows import FLOWS
from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.links import LINKS
from exitwise.catalogue.losses import LOSSES
from exitwise.catalogue.measures import MEASURES
from exitwise.catalogue.methods import METHODS
from exitwise.catalogue.models import MODELS
from exitwise.catalogue.recipes import RECIPES
from exitwise.catalogue.schedules import SCHEDULES
from exitwise.catalogue.sources import SOURCES

KINDS: dict[str, Mapping[str, Entry]] = {
    "commands": COMMANDS,
    "data sets": SOURCES,
    "flows": FLOWS,
    "formats": FORMATS,
    "links": LINKS,
    "losses": LOSSES,
    "measures": MEASURES,
    "methods": METHODS,
    "models": MODELS,
    "recipes": RECIPES,
    "regimes": SCHEDULES,
}


def table(kind: str) -> str:
    """Return the entries of a kind with their lines, as a table in Markdown."""
    before = "exitwise " if kind == "commands" else ""
    rows = (f"| `{before}{entry.name}` | {entry.summary} |" for entry in KINDS[kind].values())
    return "\n".join([f"| {kind} | |", "|---|---|", *rows])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its tables."""
    return re.sub(r"^<!-- table of (.+) -->$", lambda found: table(found[1]), markdown, flags=re.MULTILINE)
