"""The account of a data set's images: how many there are, which are skipped and why, how many are converted.

It knows neither how images are read nor where the account is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from exitwise.errors import DataError
from exitwise.storage.images import BrokenImageError

SHOWN = 3


class Skipped(NamedTuple):
    """An image that was skipped: its file, the kind of fault and the reason, as of :class:`BrokenImageError`."""

    path: str
    kind: str
    reason: str

    @classmethod
    def of(cls, error: BrokenImageError) -> Skipped:
        return cls(str(error.path), error.kind, error.reason)


class ImageLedger:
    """The account of the image files of a data set, all its parts together. There is no limit until one is set.

    Attributes:
        images: number of image files.
        skipped: by path, in the order in which they were found.
        conversions: what files need to be converted, by path.
        on_change: called after images were added to ``skipped``.
    """

    def __init__(self) -> None:
        self.max_broken = 1.0
        self.images = 0
        self.skipped: dict[str, Skipped] = {}
        self.conversions: dict[str, tuple[str, ...]] = {}
        self.on_change: Callable[[], None] = lambda: None

    def skip(self, found: Iterable[Skipped]) -> None:
        """Enter broken images; those known already count once.

        Raises:
            DataError: if that makes too many (see :meth:`limit`).
        """
        before = len(self.skipped)
        for each in found:
            self.skipped.setdefault(each.path, each)
        if len(self.skipped) > before:
            self.on_change()
            self.limit(self.max_broken)

    def limit(self, max_broken: float) -> None:
        """Allow this share of the images to be broken, from now on.

        Raises:
            DataError: naming the first files, if more are.
        """
        self.max_broken = max_broken
        if len(self.skipped) <= max_broken * self.images:
            return
        first = [f"{each.path} ({each.kind}: {each.reason})" for each in list(self.skipped.values())[:SHOWN]]
        more = f" and {len(self.skipped) - SHOWN} more" if len(self.skipped) > SHOWN else ""
        raise DataError(
            f"expected at most {self.max_broken:g} of the images to be broken (max_broken); got {len(self.skipped)} "
            f"of {self.images}: {', '.join(first)}{more}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers of images, and of those skipped and converted by kind; one may count several times."""
        converted = (kinds for path, kinds in self.conversions.items() if path not in self.skipped)
        return {
            "images": self.images,
            "skipped": _counts(each.kind for each in self.skipped.values()),
            "converted": _counts(kind for kinds in converted for kind in kinds),
        }

    def __str__(self) -> str:
        """``skipped 3 (2 damaged, 1 empty), converted 4 palette``; empty if nothing was."""
        summary = self.summary()
        skipped, converted = (
            ", ".join(f"{count} {kind}" for kind, count in summary[what].items()) for what in ("skipped", "converted")
        )
        parts = [f"skipped {len(self.skipped)} ({skipped})"] if skipped else []
        return ", ".join(parts + ([f"converted {converted}"] if converted else []))


def _counts(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))
