"""What timm's maintainers have published of its networks: accuracy on ImageNet, cost, time on a CPU. Without torch."""

from __future__ import annotations

import csv
import warnings
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

from exitwise.errors import ExitwiseWarning

AS_OF = date(2026, 8, 8)
"""Day of the tables; ``published.txt`` says where they come from."""

OLD_DAYS = 365


class Published(NamedTuple):
    """A network of timm at a size of image.

    Attributes:
        name: with the name of the weights, as timm takes it.
        image_size: side in pixels.
        accuracy: on ImageNet's validation images, a share.
        macs: multiply-accumulates per image.
        seconds: per image, one by one, on the machine of the table.
    """

    name: str
    image_size: int
    accuracy: float
    macs: float
    seconds: float

    @property
    def architecture(self) -> str:
        """The name without that of the weights."""
        return self.name.split(".")[0]


@cache
def published() -> tuple[Published, ...]:
    """Return the table."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                row["name"],
                int(row["image_size"]),
                float(row["top1"]) / 100,
                float(row["gmacs"]) * 1e9,
                float(row["milliseconds"]) / 1000,
            )
            for row in csv.DictReader(file)
        )


def warn_if_old(today: date) -> None:
    """Warn of a table that is older than a year."""
    age = (today - AS_OF).days
    if age > OLD_DAYS:
        warnings.warn(
            f"the table of candidates is of {AS_OF}, {age / 365:.1f} years old: newer networks are not in it",
            ExitwiseWarning,
            stacklevel=3,
        )
