"""Wall-clock comparison on a noisy machine: functions timed in turn, medians reported."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from exitwise.errors import ExitwiseWarning
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.kernels.inputs import varied
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

BUSY = 0.7
"""Load per core, before anything is timed, from which times mean little."""


class BusyWarning(ExitwiseWarning):
    """Times are taken beside other work."""


NEVER, ALWAYS = 2.0, -1.0
"""Thresholds that no confidence, and that every confidence, reaches."""

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


def measure_speedups(
    model: StagedModel, policies: Mapping[Name, ExitPolicy], images: Tensor, batch_size: int, rounds: int = 9
) -> dict[Name, float]:
    """Return how many times faster the early-exit runner is than the network without its early exits, per policy.

    Args:
        model: the network, in eval mode on the device to measure.
        policies: name to exit policy.
        images: what to classify, (N, channels, height, width), on that device.
        batch_size: images at a time.
        rounds: timed rounds; medians count.
    """
    batches = images.split(batch_size)
    runners = {name: EarlyExitRunner(model, policy) for name, policy in policies.items()}

    def full() -> None:
        with torch.inference_mode(), evaluating(model):
            for batch in batches:
                model.forward_last(batch)

    def early(runner: EarlyExitRunner) -> Callable[[], object]:
        return lambda: [runner(batch) for batch in batches]

    functions: dict[Name | None, Callable[[], object]] = {None: full}
    functions.update({name: early(runner) for name, runner in runners.items()})
    seconds = interleaved_medians(functions, rounds)
    return {name: seconds[None] / seconds[name] for name in policies}


def measure_exit_seconds(model: StagedModel, rounds: int = 30) -> tuple[float, ...]:
    """Median seconds to leave at each exit, one sample at a time, earlier exits' own cost included.

    On random numbers, where the network lies, as this machine is now; a later exit is never taken for quicker than an
    earlier one. Warns where the machine is busy (:func:`warn_if_busy`).
    """
    warn_if_busy()
    sample = varied(model.example, 1, next(model.parameters()))
    runners = {
        k: EarlyExitRunner(model, ExitPolicy([NEVER] * k + [ALWAYS] * (model.exits - 1 - k)), (0,) * model.exits)
        for k in range(model.exits)
    }
    functions = {k: partial(runner, sample) for k, runner in runners.items()}
    return tuple(accumulate(interleaved_medians(functions, rounds).values(), max))


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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
