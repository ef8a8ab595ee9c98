"""What a network costs on this machine, one image at a time, whatever its weights are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs, named, varied
from exitwise.kernels.timing import interleaved_seconds
from exitwise.models.backbones.attach import add_exits
from exitwise.models.cost import count_alone

ROUNDS = 40


class Time(NamedTuple):
    """Seconds per call: the median, and what a tenth of the calls stay below and above."""

    median: float
    low: float
    high: float


class Timeable(NamedTuple):
    """A network as something to call.

    Attributes:
        call: classifies one input.
        form: ``onnx`` or ``eager``.
        macs: multiply-accumulates per input.
    """

    call: Callable[[], object]
    form: str
    macs: float


def timeable(network: nn.Module, example: Inputs) -> Timeable:
    """Return a copy of a network on the CPU, in ONNX Runtime, or as it is where it has no such form here.

    Raises:
        UserError: for inputs that it does not take.
    """
    whole = add_exits(copy.deepcopy(network).cpu().eval(), exits=1, example=example, skip=False)
    macs = count_alone(whole, 0)
    try:
        call = _in_onnx(whole, example)
    except UserError:
        inputs = varied(example, 1, next(whole.parameters()))
        return Timeable(partial(_eagerly, whole, inputs), "eager", macs)
    return Timeable(call, "onnx", macs)


def _in_onnx(whole: Any, example: Inputs) -> Callable[[], object]:
    from exitwise.deploy.formats.onnx import onnx_of_exit
    from exitwise.deploy.sessions import open_session

    session = open_session(onnx_of_exit(whole, 0))
    inputs = varied(example, 1, next(whole.parameters()))
    values = [value.numpy() for value in named(inputs).values()]
    feed = {each.name: value for each, value in zip(session.get_inputs(), values, strict=True)}
    return partial(session.run, None, feed)


@torch.inference_mode()
def _eagerly(whole: Any, inputs: Inputs) -> object:
    return whole.forward_only(inputs, 0)


def times_of(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Time]:
    """Return the time of each, called in turn."""
    return {
        name: Time(*np.percentile(values, [50, 10, 90]).tolist())
        for name, values in interleaved_seconds(calls, rounds).items()
    }
