"""Which images make up which batch: a function of (seed, epoch, number), so that a run can resume anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, position in the split): all that an augmented image depends on, besides the seed."""

SMALLEST_BATCH = 4
"""Training halves a batch, and BatchNorm may need two samples in each half."""


def derive_seed(*numbers: int) -> int:
    """A well-mixed 63-bit seed for a generator."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class EpochBatches(Sampler[list[Key]]):
    """The batches of one epoch, shuffled anew in each; a last, smaller batch is kept.

    A remainder of fewer than 4 images cannot be halved into batches that BatchNorm accepts and is left out of that
    epoch; which images that hits changes with the shuffle.

    Args:
        size: number of images N.
        batch_size: images per loaded batch.
        seed: of the shuffles.

    Attributes:
        epoch: the epoch to deliver next.
        start: the number of the first batch to deliver, to resume within an epoch.

    Raises:
        ValueError: for a batch size or number of images below 4.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        if batch_size < SMALLEST_BATCH:
            raise ValueError(
                f"batch_size must be at least {SMALLEST_BATCH}, to be trained on in halves; got {batch_size}"
            )
        if size < SMALLEST_BATCH:
            raise ValueError(f"training needs at least {SMALLEST_BATCH} images; got {size}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    @property
    def batches_per_epoch(self) -> int:
        """Loaded batches of a whole epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest >= SMALLEST_BATCH)

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        for batch in range(self.start, self.batches_per_epoch):
            positions = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, position) for position in positions]
