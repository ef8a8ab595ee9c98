"""Which group each image is of, such as a site or a camera: by name, from a table or a mapping. Imports no torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath

from exitwise.errors import DataError

Groups = str | PathLike[str] | Mapping[str, str]
"""A CSV file with the columns image and group, or group by image. An image is named by its path or the end of it."""

COLUMNS = ("image", "group")


def read_groups(groups: Groups) -> dict[str, str]:
    """Return the group of each image, by its name as it is given.

    Raises:
        DataError: for a table without these columns, a row without one of them, or an image in two groups.
    """
    if isinstance(groups, Mapping):
        return {str(image): str(group) for image, group in groups.items()}
    path = Path(groups)
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise DataError(f"expected the columns image and group in {path}; {missing[0]} is missing")
            for row in table:
                image, group = row["image"], row["group"]
                if not image or not group:
                    raise DataError(f"expected an image and its group in line {table.line_num} of {path}; got {row}")
                if found.setdefault(image, group) != group:
                    raise DataError(f"expected a group for {image} in {path}; got two, {found[image]} and {group}")
    except (OSError, csv.Error) as error:
        raise DataError(f"expected a CSV file with the columns image and group at {path}; {error}") from error
    return found


def groups_of(groups: Groups, images: Sequence[str]) -> list[str]:
    """Return the group of each image.

    Raises:
        DataError: for an image without a group, a name that fits several images, or a group of a single one.
    """
    known = read_groups(groups)
    fitting: dict[str, str] = {}
    found = []
    for image in images:
        name = next((end for end in _ends(image) if end in known), None)
        if name is None:
            without = sum(1 for each in images if not any(end in known for end in _ends(each)))
            raise DataError(
                f"expected the group of each of {len(images)} images; there is none of {without}, such as {image}"
            )
        if fitting.setdefault(name, image) != image:
            raise DataError(f"expected {name} to be one image; got {fitting[name]} and {image}: give more of the path")
        found.append(known[name])
    return check_groups(found)


def check_groups(groups: Sequence[str]) -> list[str]:
    """Return the group of each image.

    Raises:
        DataError: for a group of a single one, of which there is nothing to say.
    """
    alone = [group for group, count in Counter(groups).items() if count == 1]
    if alone:
        more = f", and so have {len(alone) - 1} more" if len(alone) > 1 else ""
        raise DataError(f"expected at least two images of each group; {alone[0]} has one{more}")
    return list(groups)


def _ends(image: str) -> Iterable[str]:
    """Yield an image's path, and the ends of it, the longest first."""
    yield image
    parts = PurePath(image).parts
    for start in range(len(parts)):
        yield PurePath(*parts[start:]).as_posix()
