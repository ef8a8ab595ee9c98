"""A network's inputs: one tensor, or tensors by the names of its arguments, batch first.

What a network takes is told by an example of it. Integers in two dimensions are token ids and masks, whose number of
tokens is free; every other size but the batch's is as in the example. Knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from exitwise.errors import UserError
from exitwise.shown import Noun

Inputs = Any
"""A tensor, or a dict of tensors by name, batch first."""

IMAGE_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
"""What batches that are mappings call the only input of a network."""

IDS = "input_ids"
"""The input that token ids are."""

MASK = "attention_mask"
"""The input that says which tokens are there (1), and which fill up a row (0)."""


def example_of(example: Any, input_shape: tuple[int, ...] | None) -> Inputs:
    """Return example inputs: those given, apart from what computed them, or one of zeros of ``input_shape``.

    Raises:
        UserError: for what is neither a tensor nor a mapping of tensors with as many rows, at least one.
    """
    if example is None:
        if input_shape is None:
            raise UserError("expected example inputs or an input_shape; got neither")
        whole = isinstance(input_shape, Sequence) and all(type(side) is int and side > 0 for side in input_shape)
        if isinstance(input_shape, str) or not whole:
            raise UserError(f"expected input_shape as whole numbers from 1, such as (3, 224, 224); got {input_shape!r}")
        return torch.zeros(1, *input_shape)
    tensors = dict(example) if isinstance(example, Mapping) else {"": example}
    wrong = [value for value in tensors.values() if not isinstance(value, Tensor) or value.dim() == 0]
    if wrong or not tensors or not all(isinstance(name, str) for name in tensors):
        raise UserError(
            "expected example inputs as a tensor, batch first, or a mapping of such tensors by argument; got "
            f"{described(example)}"
        )
    if len({len(value) for value in tensors.values()}) > 1 or len(next(iter(tensors.values()))) == 0:
        raise UserError(f"expected as many rows in each example input, at least one; got {described(example)}")
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    return copies if isinstance(example, Mapping) else copies[""]


def noun_of(example: Inputs) -> Noun:
    """Return what a network's samples are called, by an example of its inputs."""
    return "texts" if isinstance(example, Mapping) and IDS in example else "images"


def example_of_tokens(count: int) -> Inputs:
    """Return one text of so many tokens, for a network that takes ids and their mask."""
    return {name: torch.ones(1, count, dtype=torch.int64) for name in (IDS, MASK)}


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs by name; of a single tensor that is empty."""
    return dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}


def is_tokens(tensor: Tensor) -> bool:
    """Return whether a tensor is one of token ids, of a mask or the like: (batch, tokens), with tokens free."""
    return tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex()


def has_tokens(inputs: Inputs) -> bool:
    """Return whether token ids, masks or the like are among inputs."""
    return any(map(is_tokens, named(inputs).values()))


def ranges(inputs: Inputs) -> str:
    """Return the least and the largest whole number of each input, and its shape, in words."""
    return ", ".join(
        f"{name} {int(part.min())} to {int(part.max())} {tuple(part.shape)}".strip()
        for name, part in named(inputs).items()
        if is_tokens(part)
    )


def samples_in(inputs: Inputs) -> int:
    """Return how many rows inputs have."""
    return len(next(iter(named(inputs).values())))


def device_of(inputs: Inputs) -> torch.device:
    """Return where inputs lie."""
    return next(iter(named(inputs).values())).device


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Return inputs on a device."""
    return tree_map(lambda tensor: tensor.to(device, non_blocking=True), inputs)


def batch_of(example: Inputs, samples: int, like: Tensor) -> Inputs:
    """Return so many rows of the example, in turn, where ``like`` lies; floats have its type."""

    def batch(tensor: Tensor) -> Tensor:
        rows = tensor[torch.arange(samples, device=tensor.device) % len(tensor)]
        return rows.to(like.device, like.dtype if rows.is_floating_point() else rows.dtype)

    return tree_map(batch, example)


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Return the rows of several batches in one; tokens are filled up with zeros, which masks read as not there, to the
    longest."""

    def join(*parts: Tensor) -> Tensor:
        if is_tokens(parts[0]):
            longest = max(part.shape[1] for part in parts)
            parts = tuple(F.pad(part, (0, longest - part.shape[1])) for part in parts)
        return torch.cat(parts)

    joint: Inputs = tree_map(join, *batches)
    return joint


def shortened(inputs: Inputs) -> Inputs:
    """Return inputs with about half of their tokens, at least two."""
    return tree_map(lambda part: part[:, : max(2, part.shape[1] // 2)] if is_tokens(part) else part, inputs)


def parted(inputs: Inputs, count: int) -> list[Inputs]:
    """Return inputs in so many parts of nearly as many rows, the first ones one larger."""
    parts = {name: tensor.tensor_split(count) for name, tensor in named(inputs).items()}
    if not isinstance(inputs, Mapping):
        return list(parts[""])
    return [{name: each[k] for name, each in parts.items()} for k in range(count)]


def laid_out(inputs: Inputs, form: torch.memory_format) -> Inputs:
    """Return inputs whose tensors have a memory format."""
    return tree_map(lambda tensor: tensor.contiguous(memory_format=form), inputs)


def varied(example: Inputs, samples: int, like: Tensor, seed: int = 0) -> Inputs:
    """As :func:`batch_of`, with other numbers in it: normal ones for floats; for whole numbers above 1, half of them
    others of the example, which keeps ids within a vocabulary and masks as they are. Where a mask has no zero, the last
    row's second half is masked."""
    generator = torch.Generator().manual_seed(seed)

    def vary(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator).to(like.device, like.dtype)
        known = tensor[tensor > 1]
        if tensor.dtype == torch.bool or not len(known):
            return tensor
        drawn = known.cpu()[torch.randint(len(known), tensor.shape, generator=generator)].to(tensor.device)
        keep = (torch.rand(tensor.shape, generator=generator) < 0.5).to(tensor.device) | (tensor <= 1)
        return torch.where(keep, tensor, drawn)

    inputs = tree_map(vary, batch_of(example, samples, like))
    if isinstance(inputs, dict) and MASK in inputs and samples > 1 and bool(inputs[MASK].all()):
        inputs[MASK] = inputs[MASK].clone()
        inputs[MASK][-1, (inputs[MASK].shape[1] + 1) // 2 :] = 0
    return inputs


def taken(batch: Any, example: Inputs) -> tuple[Inputs, Any] | None:
    """Return what a loader's batch has for the network, and the rest; None where that cannot be told.

    A batch is inputs, a mapping with the inputs' names, or a sequence of inputs and what follows them; inputs by name
    may also be tensors in the order of the example.
    """
    if isinstance(batch, Mapping):
        if isinstance(example, Mapping):
            names = {name: name for name in example}
        else:
            names = {"": next((name for name in IMAGE_KEYS if name in batch), "")}
        if not all(name in batch for name in names.values()):
            return None
        found = {name: batch[key] for name, key in names.items()}
        rest = {key: value for key, value in batch.items() if key not in names.values()}
        return (found if isinstance(example, Mapping) else found[""]), rest
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, (tuple, list)) else []
    if not parts:
        return None
    if isinstance(parts[0], Mapping):
        inside = taken(parts[0], example)
        return inside and (inside[0], parts[1:])
    if isinstance(example, Mapping):
        if len(parts) < len(example):
            return None
        return dict(zip(example, parts, strict=False)), parts[len(example) :]
    return parts[0], parts[1:]


def mismatch(inputs: Inputs, example: Inputs, dtype: torch.dtype | None = None) -> tuple[str, str] | None:
    """Return what was expected and what came, in words, unless inputs are such as the example, at least one row; None
    if they are.

    Args:
        inputs: to look at.
        example: what they should be like.
        dtype: of floats; any if None.
    """
    if isinstance(inputs, Mapping) != isinstance(example, Mapping):
        return _wanted(example, dtype), described(inputs)
    given = named(inputs)
    wishes = named(example)
    right = all(
        isinstance(given.get(name), Tensor) and _is_like(given[name], wish, dtype) for name, wish in wishes.items()
    )
    if right:
        found = [given[name] for name in wishes]
        tokens = {tensor.shape[1] for tensor, wish in zip(found, wishes.values(), strict=True) if is_tokens(wish)}
        rows = {len(tensor) for tensor in found}
        right = len(rows) == 1 and 0 not in rows | tokens and len(tokens) < 2
    return None if right else (_wanted(example, dtype), described(inputs))


def _is_like(tensor: Tensor, wish: Tensor, dtype: torch.dtype | None) -> bool:
    if tensor.dim() != wish.dim() or tensor.is_floating_point() != wish.is_floating_point():
        return False
    if is_tokens(wish):
        return True
    return tensor.shape[1:] == wish.shape[1:] and (not wish.is_floating_point() or dtype in (None, tensor.dtype))


def described(inputs: Any) -> str:
    """Return what inputs, or what stands in their place, are, in words."""
    if isinstance(inputs, Tensor):
        return f"{inputs.dtype} {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {described(value)}" for name, value in inputs.items()) or "an empty mapping"
    return type(inputs).__name__


def _wanted(example: Inputs, dtype: torch.dtype | None) -> str:
    return ", ".join(
        f"{name} {dtype if dtype and tensor.is_floating_point() else _kind(tensor)} {_shape(tensor)}".strip()
        for name, tensor in named(example).items()
    )


def _kind(tensor: Tensor) -> str:
    return "floating-point" if tensor.is_floating_point() else str(tensor.dtype)


def _shape(tensor: Tensor) -> str:
    rest = ("tokens",) if is_tokens(tensor) else tuple(map(str, tensor.shape[1:]))
    return f"(B, {', '.join(rest)})" if rest else "(B)"
