"""Which of the published networks are worth a look, at a limit of cost. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from exitwise.catalogue.published import Published, published
from exitwise.errors import UserError

MOST, FASTER = 4, 0.75
"""How many candidates are picked, and the next one's share of the cost of the one before, at most."""


def at_size(rows: Iterable[Published], image_size: int | None) -> list[Published]:
    """Return networks as they would be at one size of image: the nearest published size, its costs scaled by area.

    Accuracy stays that of the published size. Without a size each keeps its own.
    """
    if image_size is None:
        return list(rows)
    nearest: dict[str, Published] = {}
    for row in rows:
        other = nearest.get(row.architecture)
        if other is None or abs(row.image_size - image_size) < abs(other.image_size - image_size):
            nearest[row.architecture] = row
    return [
        row._replace(image_size=image_size, macs=row.macs * area, seconds=row.seconds * area)
        for row in nearest.values()
        for area in [(image_size / row.image_size) ** 2]
    ]


def front(rows: Iterable[Published], cost: Callable[[Published], float]) -> list[Published]:
    """Return the networks that none is more accurate than at no more cost, cheap to dear."""
    best: list[Published] = []
    for row in sorted(rows, key=lambda row: (cost(row), -row.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return best


def pick(rows: Sequence[Published], cost: Callable[[Published], float], limit: float) -> list[Published]:
    """Return a handful of networks on the front within a limit, the most accurate first, each clearly cheaper than the
    one before; where none is within it, the cheapest of all."""
    whole = front(rows, cost)
    picked: list[Published] = []
    for row in reversed([row for row in whole if cost(row) <= limit] or whole[:1]):
        if len(picked) < MOST and (not picked or cost(row) <= FASTER * cost(picked[-1])):
            picked.append(row)
    return picked


def find(name: str, image_size: int) -> Published | None:
    """Return the published row of a network, by its name with or without that of its weights, at the nearest size; None
    where there is none."""
    rows = published()
    same = [row for row in rows if row.name == name] or [row for row in rows if row.architecture == name.split(".")[0]]
    return min(same, key=lambda row: abs(row.image_size - image_size), default=None)


def parse_weights(texts: Sequence[str]) -> dict[str, str]:
    """Return files of weights by network from ``NAME=FILE``, the name as timm has it, with or without ``timm/``.

    Raises:
        UserError: for another form, or a name twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        name = name.removeprefix("timm/")
        if not (name and equals and file):
            raise UserError(f"expected weights as NAME=FILE, such as resnet18=resnet18.safetensors; got {text!r}")
        if name in found:
            raise UserError(f"expected weights of each network once; got {name} twice")
        found[name] = file
    return found
