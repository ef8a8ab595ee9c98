"""From the labels of images, as texts, to class names in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from exitwise.errors import DataError

SEVERAL = "several labels of one sample; exitwise tells classes apart of which each sample is of one (no multi-label)"
"""What is said where a data set has lists in the place of labels."""


def class_names(path: Path, places: Mapping[str, str]) -> list[str]:
    """Return labels as class names, numbers by their size.

    Args:
        path: of the data set.
        places: where a label was met, such as ``line 3``, by label.

    Raises:
        DataError: for a single label, or numbers among names.
    """
    numbers = {label for label in places if label.lstrip("-").isdecimal()}
    if numbers and len(numbers) < len(places):
        number, name = (next(label for label in places if (label in numbers) == asked) for asked in (True, False))
        raise DataError(
            f"expected labels of one kind in {path}; got the number {number} ({places[number]}) and the name "
            f"{name!r} ({places[name]})"
        )
    if len(places) < 2:
        raise DataError(f"expected at least two labels in {path}; got only {next(iter(places))!r}")
    return sorted(places, key=int) if numbers else sorted(places)


def numbered(path: Path, places: Mapping[str, str], classes: Sequence[str]) -> dict[str, int]:
    """Return the number of each class, by its name.

    Raises:
        DataError: if one of the labels is of none.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := next((label for label in places if label not in numbers), None):
        raise DataError(f"expected the labels of the training samples in {path}; got {unknown!r} ({places[unknown]})")
    return numbers
