"""Training batches of a split, augmented, on a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from exitwise.data.reading import AHEAD, ImagesByKey, Slots, collate, end_quietly, start
from exitwise.data.sampling import EpochBatches, InOrder, derive_seed, random_keys
from exitwise.data.sources import ArraySource
from exitwise.data.sources.texts import TextSource
from exitwise.data.splits import Split
from exitwise.data.transforms import Preprocessing
from exitwise.kernels.inputs import Inputs, moved

MOST_SHARED = 2**29
"""Bytes that batches of workers may take for good."""


class TrainingBatches:
    """Augmented training batches on a device: (inputs, targets).

    Images that are in memory go to the device once, as uint8, and are augmented there in batches, unless something is
    done to single images; others are read by a :class:`DataLoader`. What a batch holds depends on (seed, epoch, number)
    alone, whatever the device or the number of workers. In place of an image that turns out broken comes the next
    readable one of its class. Texts are alike in length within a batch, and filled up to its longest.

    Args:
        split: the training split.
        batch_size: images per loaded batch, all processes together.
        seed: of order and augmentation.
        device: where to train.
        workers: processes that read images which are not in memory.
        rank, ranks: number of this process among those that train together, and how many there are.
        in_order: whether batches are of :class:`~exitwise.data.sampling.InOrder`, with the same images otherwise.

    Attributes:
        sampler: says which epoch and batch come next.

    Raises:
        ValueError: for a batch size or number of images below 4.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        in_order: bool = False,
    ) -> None:
        shards = split.source.shards
        self.texts = split.source if isinstance(split.source, TextSource) else None
        self.sampler = (InOrder if in_order else EpochBatches)(
            len(split),
            batch_size,
            seed,
            rank,
            ranks,
            None if shards is None else shards[split.indices],
            None if self.texts is None else self.texts.lengths[split.indices],
        )
        self.device = torch.device(device)
        self.indices, self.targets = split.indices, split.targets.to(self.device)
        if not isinstance(split.preprocessing, Preprocessing):
            return
        self.preprocessing = split.preprocessing
        self.to_float = split.preprocessing.to_float()
        self.workers = workers
        self.ledger = split.source.ledger
        singly = split.preprocessing.one_by_one()
        self.resident = isinstance(split.source, ArraySource) and singly is None
        if self.resident:
            assert isinstance(split.source, ArraySource)
            self.images = split.source.images[split.indices].to(self.device)
        else:
            side = split.preprocessing.image_size
            shape = (batch_size, split.preprocessing.channels, side, side)
            apart = workers and self.device.type == "cpu" and Slots.size(workers, shape) <= MOST_SHARED
            self.slots = Slots(workers, shape) if apart else None
            self.loader = DataLoader(
                ImagesByKey(split, singly, seed),
                batch_sampler=self.sampler,
                collate_fn=self.slots or collate,
                prefetch_factor=AHEAD if workers else None,
                num_workers=workers,
                worker_init_fn=end_quietly,
                persistent_workers=workers > 0,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else each epoch would draw a seed from the global generator
            )

    def __str__(self) -> str:
        if self.texts is not None:
            longest, cut = int(self.texts.lengths[self.indices].max()), int(self.texts.cut[self.indices].sum())
            more = f" ({cut} of them longer, and cut)" if cut else ""
            return f"{len(self.indices)} texts of up to {longest} tokens{more}, alike in length in each batch"
        if self.resident:
            size = self.images.numel() / 2**20
            return f"{len(self.images)} images, decoded once and kept on {self.device} ({size:.0f} MiB)"
        readers = f"{self.workers} workers" if self.workers else "the training process"
        shards = "" if self.sampler.shards is None else f" from {len(self.sampler.shards.unique())} shards"
        return f"{self.sampler.size} images, read one by one{shards} by {readers}"

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        if self.texts is not None:
            for positions in self.sampler.positions():
                inputs = self.texts.inputs(self.indices[positions])
                yield moved(inputs, self.device), self.targets[positions.to(self.device)]
            return
        salt = derive_seed(self.sampler.seed, self.sampler.epoch)
        for positions, images, targets in self._decoded():
            keys = random_keys(positions, salt)
            yield self.to_float(self.preprocessing.augmented(images, keys)), targets

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield positions, uint8 images and targets of each batch, on the device."""
        if self.resident:
            for positions in self.sampler.positions():
                positions = positions.to(self.device, non_blocking=True)
                yield positions, self.images[positions], self.targets[positions]
        else:
            for batch, faults in start(self.loader):
                self.ledger.skip(faults)
                positions, images, targets = (
                    torch.as_tensor(part).to(self.device, non_blocking=True)
                    for part in (batch if self.slots is None else self.slots.taken(batch))
                )
                yield positions, images, targets
