"""Images of a split one by one, for the worker processes of a loader; says which of them could not be read.

It knows no batches and no account: what is broken travels with the batch, so that the count is exact for any number of
workers.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from exitwise.data.ledger import Skipped
from exitwise.data.sampling import Key, derive_seed
from exitwise.data.transforms import Transform
from exitwise.errors import DataError
from exitwise.storage.images import BrokenImageError

if TYPE_CHECKING:
    from exitwise.data.splits import Split


SIGNALS = (signal.SIGTERM, signal.SIGINT)

AHEAD = 2
"""Batches that a worker may be ahead by."""


class Reading(NamedTuple):
    """One image as it was read: tensors for the batch, None if there are none; and its fault, None if it has none."""

    sample: tuple[Any, ...] | None
    fault: Skipped | None


class _Images(Dataset[Reading]):
    def __init__(self, split: Split, transform: Transform | None) -> None:
        self.source = split.source
        self.transform = transform or (lambda image: image)
        self.indices: list[int] = split.indices.tolist()
        self.targets: list[int] = split.targets.tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, position: int) -> Tensor:
        return self.source.read(self.indices[position])


class ImagesInOrder(_Images):
    """(image, target) by position; nothing in place of a broken image."""

    def __getitem__(self, position: int) -> Reading:
        try:
            return Reading((self.transform(self.read(position)), self.targets[position]), None)
        except BrokenImageError as error:
            return Reading(None, Skipped.of(error))


class ImagesByKey(_Images):
    """(position, image, target) by (epoch, position), transformed with that key's own random numbers.

    In place of a broken image comes the next readable one of its class, in the split's order, from its end on from the
    start.
    """

    def __init__(self, split: Split, transform: Transform | None, seed: int) -> None:
        super().__init__(split, transform)
        self.seed = seed

    def __getitem__(self, key: Key) -> Reading:
        epoch, position = key
        fault = None
        try:
            image = self.read(position)
        except BrokenImageError as error:
            fault = Skipped.of(error)
            image = self._substitute(position, error)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, position))
            return Reading((position, self.transform(image), self.targets[position]), fault)

    def _substitute(self, position: int, error: BrokenImageError) -> Tensor:
        for step in range(1, len(self)):
            other = (position + step) % len(self)
            if self.targets[other] == self.targets[position]:
                try:
                    return self.read(other)
                except BrokenImageError:
                    continue  # it is reported when its own turn comes
        name = self.source.classes[self.targets[position]]
        raise DataError(
            f"expected readable training images of class {name!r}; all of them are broken, such as {error.path} "
            f"({error.kind}: {error.reason})"
        )


def collate(readings: list[Reading]) -> tuple[list[Any] | None, list[Skipped]]:
    """Return a batch of what could be read, None if nothing could; and the faults.

    Numbers stay numbers: a tensor from a worker is a file in shared memory, which is opened and closed for it.
    """
    samples = [reading.sample for reading in readings if reading.sample is not None]
    faults = [reading.fault for reading in readings if reading.fault is not None]
    columns = [
        default_collate(list(each)) if isinstance(each[0], Tensor) else list(each)
        for each in zip(*samples, strict=True)
    ]
    return columns or None, faults


class Slots:
    """Collates batches into shared memory that stays: each worker writes into its slots in turn.

    A batch that is sent as a tensor is a new file in shared memory, whose pages the system clears each time; sent is
    where it lies, in place of that. A worker is ahead by :data:`AHEAD` batches at most of the last one that was taken,
    which therefore stays as it is until the next of any worker is asked for.

    Args:
        workers: how many there are.
        shape: of a whole batch of images, uint8.
    """

    def __init__(self, workers: int, shape: tuple[int, ...]) -> None:
        self.images = torch.empty(workers, AHEAD + 1, *shape, dtype=torch.uint8).share_memory_()
        self.turn = 0

    @staticmethod
    def size(workers: int, shape: tuple[int, ...]) -> int:
        """Return how many bytes they take."""
        return workers * (AHEAD + 1) * math.prod(shape)

    def __call__(self, readings: list[Reading]) -> tuple[list[Any] | None, list[Skipped]]:
        """Return :func:`collate`'s, with worker, slot and number of images in the place of these; in a worker."""
        samples = [reading.sample for reading in readings if reading.sample is not None]
        faults = [reading.fault for reading in readings if reading.fault is not None]
        if not samples:
            return None, faults
        positions, images, targets = zip(*samples, strict=True)
        worker = get_worker_info()
        assert worker is not None
        self.turn = (self.turn + 1) % (AHEAD + 1)
        torch.stack(images, out=self.images[worker.id, self.turn, : len(images)])
        return [list(positions), (worker.id, self.turn, len(images)), list(targets)], faults

    def taken(self, batch: list[Any]) -> list[Any]:
        """Return a batch with its images, which stay until another one is asked for."""
        positions, (worker, slot, count), targets = batch
        return [positions, self.images[worker, slot, :count], targets]


def start(loader: DataLoader[Reading]) -> Iterator[Any]:
    """Return the loader's batches; workers that are forked here hear no signal before :func:`end_quietly`."""
    if multiprocessing.get_start_method() != "fork":
        return iter(loader)
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def end_quietly(worker: int) -> None:
    """Let SIGTERM and SIGINT end a worker without an error.

    They come to all processes of a training, and may come to a worker first: of its error torch would tell the training
    amidst a step.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
