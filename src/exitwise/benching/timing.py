"""How much time leaving early saves, and takes at each exit, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import leaving_at
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.kernels.inputs import varied
from exitwise.kernels.modes import evaluating
from exitwise.kernels.timing import Name, interleaved_medians, warn_if_busy
from exitwise.models.staged import StagedModel


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
        k: EarlyExitRunner(model, ExitPolicy(leaving_at(k, model.exits)), (0,) * model.exits)
        for k in range(model.exits)
    }
    functions = {k: partial(runner, sample) for k, runner in runners.items()}
    return tuple(accumulate(interleaved_medians(functions, rounds).values(), max))
