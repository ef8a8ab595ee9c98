"""Outputs of an exported network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import input_names
from exitwise.exiting.arrays import as_numpy
from exitwise.kernels.inputs import Inputs, named
from exitwise.models.staged import StagedModel

Batch = tuple[Mapping[str, NDArray[Any]], NDArray[np.int64]]
"""Arrays of inputs by name, and targets."""


def logits_of(runner: OnnxRunner, batches: Iterable[Batch]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits (N, K, C) of all exits, and targets (N)."""
    parts = [(runner.logits(inputs), targets) for inputs, targets in batches]
    logits, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    return logits, targets


def as_arrays(model: StagedModel, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return inputs by the names that an export has for them."""
    arrays = (as_numpy(tensor) for tensor in named(inputs).values())
    return dict(zip(input_names(model), arrays, strict=True))


def arrays_of(model: StagedModel, pairs: Iterable[tuple[Inputs, Tensor]]) -> Iterator[Batch]:
    """Yield batches of inputs and targets as an export takes them."""
    for inputs, targets in pairs:
        yield as_arrays(model, inputs), as_numpy(targets)
