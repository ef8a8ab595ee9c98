"""Disjoint train, calibration and test splits of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from exitwise.data.grouped import hold_out_groups
from exitwise.data.ledger import ImageLedger
from exitwise.data.reading import ImagesInOrder, Reading, collate, end_quietly, start
from exitwise.data.sampling import derive_seed
from exitwise.data.sources import ArraySource, Source, Sources, open_source
from exitwise.data.sources.texts import TextSource
from exitwise.data.tokens import Tokens
from exitwise.data.transforms import Preprocessing
from exitwise.errors import DataError
from exitwise.kernels.inputs import Inputs
from exitwise.shown import Noun
from exitwise.storage.digest import digest_of

TEXTS_AT_ONCE = 32
"""At most, where no gradient is needed: more would be filled up to longer ones."""


@dataclass(frozen=True)
class Split:
    """Some images of a source.

    Attributes:
        source: where they come from.
        indices: their positions there, sorted int64 (N).
        preprocessing: what happens to them.
    """

    source: Source
    indices: Tensor
    preprocessing: Preprocessing | Tokens

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def targets(self) -> Tensor:
        """Class index of each image, int64 (N)."""
        return self.source.targets[self.indices]

    def name(self, position: int) -> str:
        """Return the name of an image within the source."""
        return self.source.names[int(self.indices[position])]

    def readable(self) -> list[str]:
        """Return path or, without files, name of each image that is not known to be broken, in order."""
        return [self._called(index) for index in self._readable_indices()]

    def readable_groups(self) -> list[str] | None:
        """Return the group of each image that is not known to be broken; None if groups are not known."""
        groups = self.source.groups
        return None if groups is None else [groups[index] for index in self._readable_indices()]

    def readable_targets(self) -> Tensor:
        """Return class index of each image that is not known to be broken, int64."""
        return self.source.targets[self._readable_indices()]

    def _readable_indices(self) -> list[int]:
        skipped = self.source.ledger.skipped
        return [index for index in self.indices.tolist() if not skipped or self._called(index) not in skipped]

    def _called(self, index: int) -> str:
        """Return path or, without files, name of an image of the source."""
        return str(self.source.paths[index]) if self.source.paths else self.source.names[index]

    def fingerprint(self) -> str:
        """Return the SHA-256 over names, classes and stamps (see :meth:`Source.stamp`) of the images, in order."""
        pairs = zip(self.indices.tolist(), self.targets.tolist(), strict=True)
        return digest_of((self.source.names[index], target, self.source.stamp(index)) for index, target in pairs)

    def shared_with(self, other: Split) -> int:
        """Return how many images are in both: the same files or, without files, of the same name and pixels."""
        return len(_files(self) & _files(other)) or len(_pixels(self) & _pixels(other))

    def share(self, rank: int, ranks: int) -> Split:
        """Return the part of one of several processes: in the order of ranks, they make up the split."""
        return replace(self, indices=self.indices.tensor_split(ranks)[rank])

    def batches(self, batch_size: int, workers: int = 0) -> Iterable[tuple[Inputs, Tensor]]:
        """Return samples in order, not augmented, in batches of (inputs, targets); broken images are left out.

        Batches of texts, which are filled up to the longest, may be smaller.
        """
        if isinstance(self.source, TextSource):
            return self._texts(self.source, min(batch_size, TEXTS_AT_ONCE))
        assert isinstance(self.preprocessing, Preprocessing)
        transform = self.preprocessing.for_evaluation()
        if isinstance(self.source, ArraySource):
            images = self.source.images
            return ((transform(images[part]), self.source.targets[part]) for part in self.indices.split(batch_size))
        readings = ImagesInOrder(self, transform)
        loader = DataLoader(
            readings,
            batch_size,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=end_quietly,
            generator=torch.Generator(),
        )
        return self._readable(loader)

    def _texts(self, source: TextSource, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        for part in self.indices.split(batch_size):
            yield source.inputs(part), source.targets[part]

    def _readable(self, loader: DataLoader[Reading]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, faults in start(loader):
            self.source.ledger.skip(faults)
            if batch is not None:
                images, targets = batch
                yield images, torch.tensor(targets)


class Splits(NamedTuple):
    """Disjoint splits of a data set, and its class names."""

    train: Split
    calibration: Split
    test: Split
    classes: list[str]

    @property
    def ledger(self) -> ImageLedger:
        """The account of the image files of all splits."""
        return self.train.source.ledger

    def summary(self) -> dict[str, Any]:
        """Return classes, sizes and fingerprints, to be recorded with a run and compared later."""
        parts = {"train": self.train, "calibration": self.calibration, "test": self.test}
        return {
            "classes": self.classes,
            "sizes": {name: len(split) for name, split in parts.items()},
            "sha256": {name: split.fingerprint() for name, split in parts.items()},
        }


def load(
    name_or_path: str,
    preprocessing: Preprocessing | Tokens,
    *,
    root: str | Path | None = None,
    calibration_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_broken: float = 1.0,
    imbalance: float = 1.0,
) -> Splits:
    """Load a data set as disjoint splits.

    Image files that cannot be used are left out and entered in :attr:`Splits.ledger`: at once where their header tells
    or where all images are decoded now, else when they are read.

    Where the data set has no calibration (or test) images of its own, they are held out of the training
    images (whole groups of them, where these are known): per class, at random, the given fraction and at least one.

    Args:
        name_or_path: see :func:`~exitwise.data.sources.open_source`.
        preprocessing: what happens to the images.
        root: where named data sets lie.
        calibration_fraction, test_fraction: shares of the training images to hold out.
        seed: of the random choice.
        max_broken: share of the image files that may be broken, now and while the splits are used.
        imbalance: below 1 the training images, and the calibration images held out of them, are made long-tailed
            (:func:`long_tailed`); test images stay as they are.

    Raises:
        DataError: for missing, empty or unsuitable data, too much of it broken, and classes too small to be split.
    """
    ledger = ImageLedger()
    if isinstance(preprocessing, Tokens):
        sources = open_source(name_or_path, root, tokens=preprocessing)
    else:
        image_size = None if preprocessing.any_size else preprocessing.image_size
        sources = open_source(name_or_path, root, preprocessing.channels, image_size, ledger)
    ledger.limit(max_broken)
    fractions = {
        name: fraction
        for name, fraction in (("calibration", calibration_fraction), ("test", test_fraction))
        if getattr(sources, name) is None
    }
    noun: Noun = "texts" if isinstance(preprocessing, Tokens) else "images"
    held_out = _hold_out(sources.train, fractions, seed, noun)
    for name in {"train", "calibration"} & set(held_out):
        held_out[name] = held_out[name][long_tailed(sources.train.targets[held_out[name]], imbalance, seed)]

    def split(name: str) -> Split:
        source = getattr(sources, name)
        if source is None or name == "train":
            return Split(sources.train, held_out[name], preprocessing)
        return Split(source, torch.arange(len(source.targets)), preprocessing)

    splits = Splits(split("train"), split("calibration"), split("test"), sources.train.classes)
    _check_disjoint(splits, sources)
    return splits


def _hold_out(source: Source, fractions: dict[str, float], seed: int, noun: Noun) -> dict[str, Tensor]:
    if source.groups is not None and fractions:
        return hold_out_groups(source, fractions, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed))
    parts: dict[str, list[Tensor]] = {name: [] for name in (*fractions, "train")}
    for target, name in enumerate(source.classes):
        members = (source.targets == target).nonzero().squeeze(1)
        if len(members) <= len(fractions):
            raise DataError(
                f"expected at least {len(fractions) + 1} {noun} of class {name!r}, one for each of "
                f"{', '.join(parts)}; got {len(members)}"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        counts = _counts(len(members), list(fractions.values()))
        for part, indices in zip(parts, members.split(counts), strict=True):
            parts[part].append(indices)
    return {name: torch.cat(indices).sort().values for name, indices in parts.items()}


def long_tailed(targets: Tensor, imbalance: float, seed: int) -> Tensor:
    """Return the positions of samples whose classes are as many as a long tail has them, sorted int64.

    Class i of C keeps at most the largest class's count times ``imbalance`` to the power of i / (C - 1), and one sample
    at least, drawn at random (Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019).

    Args:
        targets: class indices (N).
        imbalance: the last class's share of the largest's count, above 0; 1 keeps all.
        seed: of the choice.
    """
    counts = targets.bincount()
    if imbalance == 1 or len(counts) < 2:
        return torch.arange(len(targets))
    generator = torch.Generator().manual_seed(derive_seed(seed))
    order = torch.randperm(len(targets), generator=generator)
    kept = []
    for index in range(len(counts)):
        members = order[targets[order] == index]
        most = round(int(counts.max()) * imbalance ** (index / (len(counts) - 1)))
        kept.append(members[: max(most, 1)])
    return torch.cat(kept).sort().values


def _counts(n: int, fractions: Sequence[float]) -> list[int]:
    """Return the numbers of images per held-out part, at least one each, and what remains, at least one."""
    counts = [max(1, round(n * fraction)) for fraction in fractions]
    while sum(counts) >= n:
        counts[counts.index(max(counts))] -= 1
    return [*counts, n - sum(counts)]


def _check_disjoint(splits: Splits, sources: Sources) -> None:
    held_out = [split for split in splits[:3] if split.source is sources.train]
    indices = torch.cat([split.indices for split in held_out])
    assert len(indices.unique()) == len(indices), "splits overlap"
    train = _files(splits.train)
    for split in (splits.calibration, splits.test):
        shared = train & _files(split) if split.source is not splits.train.source else set()
        if shared:
            raise DataError(f"expected held-out images that are not trained on; {min(shared)} is in both")


def _files(split: Split) -> set[Path]:
    """Return the files behind a split, symbolic links followed; none for data that does not come from a folder."""
    paths = split.source.paths
    return {paths[index].resolve() for index in split.indices.tolist()} if paths else set()


def _pixels(split: Split) -> set[tuple[str, str]]:
    """Return name and stamp of each image of data that does not come from a folder; none for data that does."""
    source = split.source
    return set() if source.paths else {(source.names[index], source.stamp(index)) for index in split.indices.tolist()}
