"""Energy of the processors, where the machine counts it: RAPL's counters, which Linux shows as files.

All that runs meanwhile is counted too, and whole packages with their idle power. No counter, or one that may not be
read, is no error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

POWERCAP = Path("/sys/class/powercap")
"""Where Linux lists them."""

LEAST_SECONDS = 0.3
"""That a call is repeated for: counters move about every millisecond."""

Name = TypeVar("Name", bound=Hashable)


class Meter:
    """Counts the joules of all packages.

    Args:
        folder: where the counters are.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._packages = [path for path in sorted(folder.glob("*-rapl:*")) if path.name.count(":") == 1]
        self._ranges: list[int] = []
        try:
            self._ranges = [_number(path / "max_energy_range_uj") for path in self._packages]
            self._read()
        except (OSError, ValueError):
            self._packages = []

    def __bool__(self) -> bool:
        """Return whether there is a counter that can be read."""
        return bool(self._packages)

    def _read(self) -> list[int]:
        return [_number(path / "energy_uj") for path in self._packages]

    def joules(self, function: Callable[[], object]) -> float:
        """Return the joules of a call, the mean of as many as take :data:`LEAST_SECONDS`."""
        before, start, calls = self._read(), time.perf_counter(), 0
        while not calls or time.perf_counter() - start < LEAST_SECONDS:
            function()
            calls += 1
        spent = zip(before, self._read(), self._ranges, strict=True)
        return sum((after - first) % (most + 1) for first, after, most in spent) / 1e6 / calls


def joules_of(calls: Mapping[Name, Callable[[], object]], meter: Meter) -> dict[Name, float]:
    """Return the joules of each call, one after the other; none without a counter, or where it stops being readable."""
    try:
        return {name: meter.joules(call) for name, call in calls.items()} if meter else {}
    except (OSError, ValueError):
        return {}


def _number(path: Path) -> int:
    return int(path.read_text())
