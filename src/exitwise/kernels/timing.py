"""Wall-clock comparison on a noisy machine: functions timed in turn, and whether other work disturbs that.

Needs no torch; where it is loaded, work on a GPU is waited for.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from exitwise.errors import ExitwiseWarning

BUSY = 0.7
"""Load per core, before anything is timed, from which times mean little."""


class BusyWarning(ExitwiseWarning):
    """Times are taken beside other work."""


Name = TypeVar("Name", bound=Hashable)


def interleaved_medians(functions: Mapping[Name, Callable[[], object]], rounds: int = 9) -> dict[Name, float]:
    """Median seconds of each function over ``rounds`` rounds; see :func:`interleaved_seconds`."""
    return {name: statistics.median(values) for name, values in interleaved_seconds(functions, rounds).items()}


def interleaved_seconds(
    functions: Mapping[Name, Callable[[], object]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[Name, list[float]]:
    """Seconds of each function in each of ``rounds`` rounds, in which every one runs once.

    One round goes before, uncounted. On a GPU the device is waited for before and after each call. With
    :func:`time.process_time` as ``clock``, seconds are those of this process's threads on their processors; by default
    they are those that pass.
    """
    clock = clock or time.perf_counter
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for counted in [False] + [True] * rounds:
        for name, function in functions.items():
            _wait()
            start = clock()
            function()
            _wait()
            if counted:
                seconds[name].append(clock() - start)
    return seconds


def load() -> str:
    """Work on this machine over the last minute, as people say it."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count() or 1} cores"


def busy() -> str:
    """Return the :func:`load` where it takes so much of the cores that times mean little; else nothing."""
    return load() if os.getloadavg()[0] > BUSY * (os.cpu_count() or 1) else ""


def warn_if_busy() -> None:
    """Raise a :class:`BusyWarning` where the machine is :func:`busy`."""
    if words := busy():
        warnings.warn(f"other work is running here ({words}): the times mean little", BusyWarning, stacklevel=3)


def _wait() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
