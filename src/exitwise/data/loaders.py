"""What a user's own loader gives, as pairs of inputs and targets. Any iterable of batches will do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from exitwise.errors import DataError

INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""What batches that are mappings call their parts."""


class Network(Protocol):
    """What is asked of the network that batches are for."""

    @property
    def num_classes(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    def parameters(self) -> Iterator[Any]: ...


def pairs_of(loader: Iterable[Any], network: Network, name: str = "loader") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs (B, ...) and targets, int64 (B), of each batch.

    Args:
        loader: batches as (inputs, targets, ...), or as mappings with :data:`INPUT_KEYS` and :data:`TARGET_KEYS`.
        network: whose inputs they are, of its input_shape and its parameters' type.
        name: what to call it in an error.

    Raises:
        DataError: for no batch at all, a batch of another form, shape or type than the network takes, or targets that
            are no class indices below C.
    """
    wanted = next(iter(network.parameters())).dtype, tuple(network.input_shape)
    number = None
    for number, batch in enumerate(loader):
        inputs, targets = _parts(batch, f"batch {number} of the {name}")
        found = inputs.dtype, tuple(inputs.shape[1:])
        if found != wanted:
            raise DataError(
                f"expected inputs of {wanted[0]} and shape {wanted[1]} in batch {number} of the {name}; got {found[0]} "
                f"and {found[1]}"
            )
        if targets.dim() != 1 or len(targets) != len(inputs) or targets.is_floating_point():
            raise DataError(
                f"expected {len(inputs)} class indices in batch {number} of the {name}; got {targets.dtype} "
                f"{tuple(targets.shape)}"
            )
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < (classes := network.num_classes):
            seen = f"{int(targets.min())} to {int(targets.max())}"
            raise DataError(f"expected targets from 0 to {classes - 1} in the {name}; got {seen} in batch {number}")
        yield inputs, targets.long()
    if number is None:
        raise DataError(f"expected at least one batch in the {name}; it ended at once (an iterator that is used up?)")


def _parts(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    found: Sequence[Any] = ()
    if isinstance(batch, Mapping):
        keys = [next((key for key in names if key in batch), None) for names in (INPUT_KEYS, TARGET_KEYS)]
        found = [batch[key] for key in keys if key is not None]
    elif isinstance(batch, (tuple, list)):
        found = batch[:2]
    if len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
        what = f"a mapping of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise DataError(
            f"expected tensors (inputs, targets), or a mapping with image and label, in {where}; got {what}"
        )
    return found[0], found[1]
