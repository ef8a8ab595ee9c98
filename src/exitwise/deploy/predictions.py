"""Answers for images or texts, as a table and as rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exitwise.shown import Noun, Shown, percent, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

LISTED = 10
"""Broken images that are named."""

DONT_KNOW = "I don't know"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: class name (None: not sure enough to be answered), confidence, exit (from 1), share of
    the full MACs spent, and the likeliest classes with their probabilities, if they were asked for."""

    file: str
    prediction: str | None
    confidence: float
    exit: int
    compute: float
    top: tuple[tuple[str, float], ...] = ()

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        row = {"file": path_of(self.file), "prediction": self.prediction, "confidence": self.confidence}
        row |= {"exit": self.exit, "compute": self.compute}
        for rank, (name, probability) in enumerate(self.top, start=1):
            row |= {f"class_{rank}": name, f"probability_{rank}": probability}
        return row


class Broken(NamedTuple):
    """An image that could not be read, and why."""

    file: str
    reason: str

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return {"file": path_of(self.file), "error": self.reason}


def path_of(file: str) -> str:
    """Return the path of a file as one that no spreadsheet takes for a formula."""
    return f"./{file}" if file.startswith(("=", "+", "-", "@")) else file


@dataclass
class Tally:
    """Rows, counted: images that were read, those of them that are not answered, their share of the full MACs in sum,
    and the first of the broken ones."""

    answered: int = 0
    silent: int = 0
    unread: int = 0
    compute: float = 0.0
    broken: list[Broken] = field(default_factory=list)

    def add(self, rows: Iterable[dict[str, Any]]) -> int:
        """Count rows; return how many there have been."""
        for row in rows:
            if row.get("error") is None:
                self.answered += 1
                self.silent += row["prediction"] in (None, "")
                self.compute += row["compute"]
            else:
                self.unread += 1
                if len(self.broken) < LISTED:
                    self.broken.append(Broken(row["file"], row["error"]))
        return self.answered + self.unread


def _summary(samples: int, noun: Noun, compute: float, silent: int) -> str:
    more = f"; {silent} not answered" if silent else ""
    counted = f"{samples} {noun.removesuffix('s') if samples == 1 else noun}"
    return f"{counted}, {100 * compute / max(samples, 1):.1f} % of the full network's MACs on average{more}"


def _listed(broken: Iterable[Broken], number: int) -> list[str]:
    """Return lines on broken images: how many, and which come first."""
    if not number:
        return []
    first = list(broken)[:LISTED]
    more = [f"... and {number - len(first)} more"] if number > len(first) else []
    lines = [f"  {printable(each.file)}: {printable(each.reason)}" for each in first]
    return [f"{number} could not be read and have no answer:", *lines, *more]


@dataclass(frozen=True)
class Written(Shown):
    """Answers that were written: where to (None: standard output), counted, and what they are to."""

    path: Path | None
    tally: Tally
    noun: Noun = "images"

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        rows = self.tally.answered + self.tally.unread
        where = [] if self.path is None else [f"{rows} rows written to {self.path}"]
        lines = [*where, _summary(self.tally.answered, self.noun, self.tally.compute, self.tally.silent)]
        return Group(*lines, *_listed(self.tally.broken, self.tally.unread))


class Predictions(Shown, list[Prediction]):
    """The answers for images, in the order given.

    Attributes:
        broken: images that could not be read.
        noun: what all of them are called.
    """

    def __init__(self, predictions: Iterable[Prediction] = (), noun: Noun = "images") -> None:
        super().__init__(predictions)
        self.noun: Noun = noun
        self.broken: list[Broken] = []

    @property
    def compute(self) -> float:
        """Mean share of the full network's MACs."""
        return sum(each.compute for each in self) / len(self)

    @property
    def summary(self) -> str:
        """Return how many there are, and what they cost, in words."""
        silent = sum(each.prediction is None for each in self)
        return _summary(len(self), self.noun, sum(each.compute for each in self), silent)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        top = max((len(each.top) for each in self), default=0)
        for name in ("file", "class", "confidence", "exit", "compute", *(["likeliest"] if top else [])):
            is_text = name in ("file", "class", "likeliest")
            table.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for each in self:
            names = Text(printable(each.file)), Text(printable(each.prediction or DONT_KNOW))  # no markup
            best = [Text(printable(", ".join(f"{name} {percent(p)}" for name, p in each.top)))] if top else []
            table.add_row(*names, f"{each.confidence:.3f}", str(each.exit), percent(each.compute), *best)
        return Group(table, self.summary, *_listed(self.broken, len(self.broken)))
