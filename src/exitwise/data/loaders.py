"""What a user's own loader gives, as pairs of inputs and targets. Any iterable of batches will do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from exitwise.errors import DataError
from exitwise.kernels.inputs import Inputs, described, mismatch, named, samples_in, taken
from exitwise.models.lookups import lookups, unknown_tokens
from exitwise.models.staged import StagedModel

TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""What batches that are mappings call their targets."""


def pairs_of(loader: Iterable[Any], network: StagedModel, name: str = "loader") -> Iterator[tuple[Inputs, Tensor]]:
    """Yield inputs (B, ...), a tensor or a dict of tensors, and targets, int64 (B), of each batch.

    Args:
        loader: batches as (inputs, targets, ...), where inputs are a tensor, a mapping of tensors, or as many tensors
            as the network's example has; or as mappings with the names of the inputs (of a single one any of
            :data:`~exitwise.kernels.inputs.IMAGE_KEYS`) and one of :data:`TARGET_KEYS`.
        network: whose inputs they are, such as its example, and of its parameters' type.
        name: what to call it in an error.

    Raises:
        DataError: for no batch at all, a batch of another form, shape or type than the network takes, or targets that
            are no class indices below C.
    """
    dtype = next(iter(network.parameters())).dtype
    known = lookups(network)
    number = None
    for number, batch in enumerate(_batches(loader, name)):
        where = f"batch {number} of the {name}"
        inputs, targets = _parts(batch, network.example, where)
        if all(len(part) == 0 for part in (*named(inputs).values(), targets) if part.dim()):
            raise DataError(f"expected at least one sample in {where}; it is empty")
        wrong = mismatch(inputs, network.example, dtype)
        if wrong:
            is_sized = isinstance(inputs, Tensor) and isinstance(network.example, Tensor) and inputs.dim() == 4
            hint = " (other sizes: add_exits takes an input_shape)" if number == 0 and is_sized else ""
            raise DataError(f"expected inputs {wrong[0]} in {where}; got {wrong[1]}{hint}")
        if tokens := unknown_tokens(inputs, known):
            raise DataError(f"expected {tokens[0]} in {where}; got {tokens[1]}")
        count = samples_in(inputs)
        if targets.dim() != 1 or len(targets) != count or targets.is_floating_point():
            raise DataError(
                f"expected {count} class indices in batch {number} of the {name}; got {targets.dtype} "
                f"{tuple(targets.shape)}"
            )
        classes = network.num_classes
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            seen = f"{int(targets.min())} to {int(targets.max())}"
            raise DataError(f"expected targets from 0 to {classes - 1} in the {name}; got {seen} in batch {number}")
        yield inputs, targets.long()
    if number is None:
        once = iter(loader) is loader
        hint = " (a generator can be read once: give a loader or a list)" if once else ""
        raise DataError(f"expected at least one batch in the {name}; it ended at once{hint}")


def _batches(loader: Any, name: str) -> Iterator[Any]:
    try:
        return iter(loader)
    except TypeError:
        raise DataError(f"expected batches, in a loader or a list, as {name}; got {described(loader)}") from None


def _parts(batch: Any, example: Inputs, where: str) -> tuple[Inputs, Tensor]:
    inputs, rest = taken(batch, example) or (None, None)
    targets: Any = None
    if isinstance(rest, Mapping):
        targets = next((rest[key] for key in TARGET_KEYS if key in rest), None)
    elif rest:
        targets = rest[0]
    if not all(isinstance(part, Tensor) for part in (*named(inputs).values(), targets)):
        names = ", ".join(example) if isinstance(example, Mapping) else "image"
        raise DataError(
            f"expected tensors (inputs, targets), or a mapping with {names} and label, in {where}; got "
            f"{_described(batch)}"
        )
    return inputs, targets


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"({', '.join(map(described, batch))})"
    return type(batch).__name__
