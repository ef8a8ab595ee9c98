"""Which held-out samples a calibration was made on, so that it can be said later, and made again. Imports no torch."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from exitwise.shown import Noun


class Origin(NamedTuple):
    """Held-out samples.

    Attributes:
        samples: how many; of images those that could be read.
        sha256: over the names, classes and stamps of images; None of a loader's samples.
        data: where images from elsewhere lay; None for those that a run holds out itself, and for a loader's.
        noun: what they are called.
    """

    samples: int
    sha256: str | None = None
    data: str | None = None
    noun: Noun = "images"

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> Self | None:
        """Return it from its attributes, if there are any."""
        return (
            None
            if content is None
            else cls(int(content["samples"]), content["sha256"], content["data"], content.get("noun", "images"))
        )

    def __str__(self) -> str:
        noun = self.noun.removesuffix("s") if self.samples == 1 else self.noun
        return f"{self.samples} calibration {noun}" if self.data is None else f"{self.samples} {noun} of {self.data}"
