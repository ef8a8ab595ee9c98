"""Answers for image files, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exitwise.shown import Shown, percent

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: class name, confidence, exit (from 1), and share of the full MACs spent."""

    file: str
    prediction: str
    confidence: float
    exit: int
    compute: float


class Predictions(Shown, list[Prediction]):
    """The answers for images, in the order given."""

    @property
    def compute(self) -> float:
        """Mean share of the full network's MACs."""
        return sum(each.compute for each in self) / len(self)

    @property
    def summary(self) -> str:
        """Return how many there are, and what they cost, in words."""
        return f"{len(self)} images, {100 * self.compute:.1f} % of the full network's MACs on average"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in ("file", "class", "confidence", "exit", "compute"):
            table.add_column(name, justify="left" if name in ("file", "class") else "right", overflow="fold")
        for each in self:
            names = Text(each.file), Text(each.prediction)  # no markup
            table.add_row(*names, f"{each.confidence:.3f}", str(each.exit), percent(each.compute))
        return Group(table, self.summary)
