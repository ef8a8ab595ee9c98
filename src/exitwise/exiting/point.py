"""What a policy does on samples, as figures. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from exitwise.shown import macs, percent, shares


class OperatingPoint(NamedTuple):
    """How a network does under one exit policy.

    Attributes:
        accuracy: share of samples classified correctly at the exit they take, in [0, 1].
        macs: mean multiply-accumulates per sample.
        shares: share of samples leaving at each exit, K numbers.
    """

    accuracy: float
    macs: float
    shares: tuple[float, ...]

    def figures(self, full_macs: float) -> list[tuple[str, str]]:
        """Return name and text of each, MACs also as a share of the full network's."""
        return [
            ("accuracy", percent(self.accuracy)),
            ("mean MACs", f"{macs(self.macs)} ({percent(self.macs / full_macs)} of full)"),
            ("leaving at each exit", shares(self.shares)),
        ]
