"""Which samples were used before: told by some of their numbers, so that what judges a network is not what made it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from exitwise.errors import DataError, ExitwiseWarning
from exitwise.kernels.inputs import MASK, Inputs, is_tokens, named

LOOKED_AT = 4096
"""Numbers of a tensor that its fingerprint comes from, evenly spread."""

MOST_KNOWN = 0.1
"""Share of samples that may have been used before: data sets hold some samples twice."""

Pairs = Iterable[tuple[Inputs, Tensor]]


def fingerprints(inputs: Inputs) -> list[int]:
    """Return 64 bits for each sample; equal samples have equal ones, whatever fills up their tokens."""
    tensors = {name: tensor.detach().cpu() for name, tensor in named(inputs).items()}
    mask = tensors.get(MASK)
    digests = [hashlib.blake2b(digest_size=8) for _ in range(len(next(iter(tensors.values()))))]
    for name, tensor in sorted(tensors.items()):
        filled = mask is not None and is_tokens(tensor) and tensor.shape == mask.shape
        for row, digest in enumerate(digests):
            numbers = tensor[row][mask[row] > 0] if filled and mask is not None else tensor[row].flatten()
            numbers = numbers[:: max(1, numbers.numel() // LOOKED_AT)].contiguous()
            digest.update(f"{name} {numbers.dtype} {numbers.numel()}".encode())
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return [int.from_bytes(digest.digest(), "big") for digest in digests]


def noted(pairs: Pairs, samples: set[int]) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the pairs, with their samples' fingerprints entered in a set."""
    for inputs, targets in pairs:
        samples.update(fingerprints(inputs))
        yield inputs, targets


def unused(pairs: Pairs, used: Mapping[str, AbstractSet[int]], name: str) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the pairs, and raise an error at their end if many of their samples were used before; a few are a warning.

    Where many samples equal one another, as those of a few whole numbers do, fingerprints tell nothing, and it is a
    warning too.

    Args:
        pairs: of inputs and targets.
        used: fingerprints, by what the samples were used for, such as ``fitted on``.
        name: what to call the pairs in an error.

    Raises:
        DataError: if more than a tenth was used.
    """
    found: list[int] = []
    for inputs, targets in pairs:
        if any(used.values()):
            found += fingerprints(inputs)
        yield inputs, targets
    for use, samples in used.items():
        known = sum(each in samples for each in found)
        if not known:
            continue
        message = f"expected samples in the {name} that nothing was {use}; {known} of {len(found)} were"
        if known > MOST_KNOWN * len(found) and len(set(found)) > (1 - MOST_KNOWN) * len(found):
            raise DataError(f"{message}: hold some out for this alone")
        warnings.warn(f"{message} (the same samples twice?)", ExitwiseWarning, stacklevel=3)
