"""What a server takes at most, and what its limits may be."""

from __future__ import annotations

from dataclasses import dataclass

from exitwise.errors import UserError

MOST = {
    "max_batch": 1e6,
    "max_queue": 1e9,
    "max_body_mb": 1e6,
    "max_pixels": 1e12,
    "timeout": 86_400.0,
    "max_wait_ms": 3_600_000.0,
    "threads": 10_000,
    "workers": 10_000,
}
"""The largest value of each limit; all are above 0."""

BODIES = 32
"""Bodies of the largest size whose bytes may be held while they, or others, are still coming."""


@dataclass
class Limits:
    """Of requests.

    Attributes:
        max_body: bytes.
        body_seconds: until a body has come.
        coming: bytes so far of the bodies that are still coming.
    """

    max_body: int = 16 * 2**20
    body_seconds: float = 30.0
    coming: int = 0

    @property
    def max_coming(self) -> int:
        """Bytes that bodies which are still coming may hold together."""
        return BODIES * self.max_body


def check_limits(**limits: float) -> None:
    """Raise UserError for a limit that is out of range."""
    for name, value in limits.items():
        if not value > 0:
            raise UserError(f"expected {name} above 0; got {value}")
        if value > MOST[name]:
            raise UserError(f"expected {name} of at most {MOST[name]:g}; got {value}")
