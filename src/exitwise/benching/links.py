"""From which speed of a link it pays to send on what a device has not answered, in place of going on there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.split import DeviceHalf
from exitwise.deploy.states import Precision
from exitwise.runs.records.bench import Link

SAMPLES, PASSES = 16, 3
"""That are timed one by one, and how often: their median counts."""


def links_of(bundle: Path, samples: Sequence[Any], exits: NDArray[np.int64]) -> list[Link]:
    """Return the break-even of a split after each exit that samples stay at.

    Args:
        bundle: it, as it is deployed.
        samples: batches of one sample, as it takes them.
        exits: that samples leave at, 0-based; it says how deep those go that are sent on.
    """
    runner = OnnxRunner(bundle)
    stages, sizes = _stages(runner, samples[:SAMPLES])
    found = []
    for k, state in enumerate(sizes, start=1):
        sent = exits[exits >= k]
        if len(sent):
            cumulated = np.cumsum(stages)
            found.append(Link(k, float((cumulated[sent] - cumulated[k - 1]).mean()), state))
    return found


def _stages(runner: OnnxRunner, samples: Sequence[Any]) -> tuple[NDArray[np.float64], list[dict[str, int]]]:
    """Return seconds of each stage for a sample, and how large its state is after each exit but the last."""
    chain = runner.chain
    seconds = np.zeros((PASSES, len(samples), len(chain)))
    sizes: list[dict[str, int]] = []
    for turn, (number, sample) in ((turn, each) for turn in range(PASSES) for each in enumerate(samples)):
        named: Mapping[str, Any] = runner.check_inputs(sample)
        inside = chain.enter(named)
        for k in range(len(chain)):
            start = time.perf_counter()
            _, inside = chain.step(k, inside)
            seconds[turn, number, k] = time.perf_counter() - start
            if not turn and not number and k + 1 < len(chain):
                halves = {each: DeviceHalf(runner, k + 1, each) for each in get_args(Precision)}
                sizes.append({each: len(half.pack(inside, runner.thresholds)) for each, half in halves.items()})
    return np.median(seconds, axis=0).mean(axis=0), sizes
