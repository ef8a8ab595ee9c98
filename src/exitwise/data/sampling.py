"""Which images make up which batch: a function of (seed, epoch, number), so that a run can resume anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, position in the split): all that an augmented image depends on, besides the seed."""

SMALLEST_BATCH = 4
"""Training halves a batch, and BatchNorm may need two samples in each half."""

BUFFER = 8192
"""Images through which those of shards are shuffled; a shard often holds a thousand."""


POOL = 32
"""Batches whose samples are sorted by length together."""


def derive_seed(*numbers: int) -> int:
    """Return a well-mixed 63-bit seed for a generator."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_keys(keys: Tensor, salt: int) -> Tensor:
    """Return 63 random bits for each int64 number: a pure function of (number, salt), the same on every device.

    SplitMix64's finalizer (Steele et al., OOPSLA 2014), twice.
    """
    mixed = _mix(_mix(keys + _signed(salt * 0x9E3779B97F4A7C15)))
    return mixed & (2**63 - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & (2 ** (64 - bits) - 1)  # torch's shift copies the sign


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def streamed(shards: Tensor, generator: torch.Generator, buffer: int = BUFFER) -> Tensor:
    """Return positions in a shuffled order in which they can be read nearly as they lie, int64 (N).

    Shard follows shard in a random order; their images pass through a buffer, of which a random one is next each time.

    Args:
        shards: the number of each image's shard, int64 (N).
        generator: of the random numbers.
        buffer: images in it; as many as there are shuffle them evenly.
    """
    turns = torch.randperm(int(shards.max()) + 1, generator=generator)
    stream = turns[shards].argsort(stable=True)
    held, coming = stream[:buffer].tolist(), stream[buffer:]
    order = []
    for place, position in zip(
        torch.randint(len(held), (len(coming),), generator=generator).tolist(), coming.tolist(), strict=True
    ):
        order.append(held[place])
        held[place] = position
    rest = torch.tensor(held)[torch.randperm(len(held), generator=generator)]
    return torch.cat([torch.tensor(order, dtype=torch.int64), rest])


def alike(lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return positions in a shuffled order in which the samples of a batch are of nearly the same length, int64 (N).

    Some batches' samples together are sorted by length and divided; batches and the samples in each are shuffled then.
    A last, smaller batch is as it comes.

    Args:
        lengths: of each sample (N).
        batch_size: samples in a batch.
        generator: of the random numbers.
    """
    order = torch.randperm(len(lengths), generator=generator)
    whole = len(order) // batch_size * batch_size
    batches: list[Tensor] = []
    for pool in order[:whole].split(batch_size * POOL) if whole else ():
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    turns = torch.randperm(len(batches), generator=generator).tolist()
    inside = [torch.randperm(batch_size, generator=generator) for _ in batches]
    return torch.cat([*(batches[turn][inside[turn]] for turn in turns), order[whole:]])


class EpochBatches(Sampler[list[Key]]):
    """The batches of one epoch, shuffled anew in each; a last, smaller batch is kept.

    A remainder of fewer than 4 images cannot be halved into batches that BatchNorm accepts and is left out of that
    epoch; which images that hits changes with the shuffle.

    Several processes are dealt the same batches as one: of each half of a batch, each process gets its share, so that
    all together train on the same halves. A batch too small to be dealt (see :meth:`dealt`) goes to each as a whole.

    Args:
        size: number of images N.
        batch_size: images per loaded batch, all processes together.
        seed: of the shuffles.
        rank, ranks: number of this process, from 0, and how many there are.
        shards: of the images, which are then shuffled as :func:`streamed` has it; None: evenly.
        lengths: of texts, which are then shuffled as :func:`alike` has it.

    Attributes:
        epoch: the epoch to deliver next.
        start: the number of the first batch to deliver, to resume within an epoch.

    Raises:
        ValueError: for a batch size below 4 per process, or less than 4 images.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        shards: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        if batch_size < SMALLEST_BATCH * ranks:
            shared = f" by {ranks} processes" if ranks > 1 else ""
            raise ValueError(
                f"batch_size must be at least {SMALLEST_BATCH * ranks}, to be trained on in halves{shared}; "
                f"got {batch_size}"
            )
        if size < SMALLEST_BATCH:
            raise ValueError(f"training needs at least {SMALLEST_BATCH} samples; got {size}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.shards = shards
        self.lengths = lengths
        self.epoch = 0
        self.start = 0

    @property
    def batches_per_epoch(self) -> int:
        """Loaded batches of a whole epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest >= SMALLEST_BATCH)

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start

    def dealt(self, number: int) -> bool:
        """Return whether a batch is dealt to the processes: it is if each gets 4 images."""
        images = min(self.batch_size, self.size - number * self.batch_size)
        return images >= SMALLEST_BATCH * self.ranks

    def positions(self) -> list[Tensor]:
        """Return the positions of this process's images of each batch from ``start`` on, int64."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        batches = self._order(generator).split(self.batch_size)
        return [self._share(number, batches[number]) for number in range(self.start, self.batches_per_epoch)]

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.lengths is not None:
            return alike(self.lengths, self.batch_size, generator)
        return (
            torch.randperm(self.size, generator=generator) if self.shards is None else streamed(self.shards, generator)
        )

    def _share(self, number: int, batch: Tensor) -> Tensor:
        """Return this process's part of the first half and of the second; the first is at most one larger."""
        if self.ranks == 1 or not self.dealt(number):
            return batch
        return torch.cat([half.tensor_split(self.ranks)[self.rank] for half in batch.chunk(2)])

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for positions in self.positions():
            yield [(epoch, position) for position in positions.tolist()]


class InOrder(EpochBatches):
    """All images of an epoch in order, none left out; the shares of a batch, in the order of ranks, make it up."""

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.size // self.batch_size)

    def dealt(self, number: int) -> bool:
        return self.size >= self.ranks

    def positions(self) -> list[Tensor]:
        batches = torch.arange(self.size).tensor_split(self.batches_per_epoch)[self.start :]
        return [batch.tensor_split(self.ranks)[self.rank] if self.dealt(0) else batch for batch in batches]
