"""The few functions that NumPy arrays and torch tensors spell differently, for either. Imports no torch."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from exitwise.shapes import Float, Int

Array = Any
"""A NumPy array or a torch tensor."""


def namespace(array: Array) -> Any:
    """Return the module with the functions for an array: numpy or torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]  # who has a tensor has imported it


def as_numpy(array: Array) -> npt.NDArray[Any]:
    """Return an array or tensor as a NumPy array, without a copy where there need be none."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    if array.dtype == sys.modules["torch"].bfloat16:  # which NumPy lacks
        array = array.float()
    converted: npt.NDArray[Any] = array.numpy()
    return converted


def softmax(logits: Float[Array, "*samples classes"]) -> Float[Array, "*samples classes"]:
    """Return the probabilities of logits."""
    if not isinstance(logits, np.ndarray):
        return logits.softmax(dim=-1)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def largest(values: Float[Array, "*samples classes"]) -> tuple[Float[Array, "*samples"], Int[Array, "*samples"]]:
    """Return the largest of the classes' values, and its index."""
    if not isinstance(values, np.ndarray):
        return tuple(values.max(dim=-1))
    return values.max(axis=-1), values.argmax(axis=-1)  # looking up by index takes three times as long


def two_largest(
    values: Float[Array, "*samples classes"],
) -> tuple[Float[Array, "*samples 2"], Int[Array, "*samples 2"]]:
    """Return the two largest of the classes' values, in falling order, and their indices."""
    if not isinstance(values, np.ndarray):
        return tuple(values.topk(2, dim=-1))
    order = np.argpartition(-values, 1, axis=-1)[..., :2]
    return np.take_along_axis(values, order, -1), order


def entropy(probabilities: Float[Array, "*samples classes"]) -> Float[Array, "*samples"]:
    """Return the entropy of probabilities in nats; a probability of 0 adds nothing."""
    if not isinstance(probabilities, np.ndarray):
        return -namespace(probabilities).special.xlogy(probabilities, probabilities).sum(dim=-1)
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities != 0)
    return -(probabilities * logs).sum(axis=-1)


def counted(counts: Int[Array, "*samples"], values: Float[Array, "*samples"]) -> Float[Array, "*samples"]:
    """Return counts + values in the type of the values, which NumPy would widen."""
    return counts.astype(values.dtype) + values if isinstance(values, np.ndarray) else counts + values


def constant(values: Any, like: Array) -> Array:
    """Return numbers as an array of the kind, type and place of another."""
    return np.array(values, like.dtype) if isinstance(like, np.ndarray) else like.new_tensor(values)


@lru_cache(1024)
def rounded(number: float, dtype: Any) -> float:
    """Return a number as ``dtype``, of NumPy or torch, holds it."""
    if isinstance(dtype, np.dtype):
        return float(dtype.type(number))
    return float(sys.modules["torch"].tensor(number, dtype=dtype))
