"""Augmentation and normalisation (torchvision transforms v2), as one record that training and prediction share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from exitwise.data.sampling import random_keys

Augment = Literal["none", "shift", "crop", "resize"]
POLICIES = {
    "rand": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "auto": v2.AutoAugment,
    "augmix": v2.AugMix,
}
"""Policies of augmentation with their usual settings. They are torchvision's, whose random numbers are torch's: an
image's augmentation depends on its key alone, whatever the number of workers; timm's draw from Python's generator."""

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """The way of an image from its file to the network.

    Attributes:
        image_size: side of the square image that the network sees.
        mean, std: per channel, of pixels in [0, 1].
        augment: for training: ``none``; ``shift``: pad by an eighth, random crop; ``crop``: shift and flip
            (CIFAR's); ``resize``: random resized crop and flip (ImageNet's). All but ``resize`` take
            images that have ``image_size`` already.
        interpolation: for resizing.
        crop: with ``resize``, share of the resized image's shorter side that the centre crop keeps.
        smallest_crop: with ``resize``, least share of the image's area that a random crop keeps.
        policy: for training besides: ``none`` or one of :data:`POLICIES`, image by image.
        erase: for training, the share of images of which a part is erased.
        signals: whether these are signals of ``image_size`` values, as images of one row, that are only normalised.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = "none"
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: float = 0.875
    smallest_crop: float = 0.08
    signals: bool = False
    policy: str = "none"
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.augment not in get_args(Augment):
            raise ValueError(f"augment must be one of {', '.join(get_args(Augment))}; got {self.augment!r}")
        if self.policy not in ("none", *POLICIES):
            raise ValueError(f"policy must be none or one of {', '.join(POLICIES)}; got {self.policy!r}")

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    @property
    def any_size(self) -> bool:
        """Return whether images of any size can be trained on."""
        return self.augment == "resize"

    def one_by_one(self) -> Transform | None:
        """Return what training does to single uint8 images, with torch's generator: the policy, erasing, and with
        ``resize`` the crop of an image of any size; None: nothing."""
        steps: list[Callable] = []
        if self.any_size:
            scale = (self.smallest_crop, 1)
            crop = v2.RandomResizedCrop(self.image_size, scale=scale, interpolation=self._mode, antialias=True)
            steps += [crop, v2.RandomHorizontalFlip()]
        if self.policy != "none":
            steps.append(POLICIES[self.policy]())
        if self.erase:
            steps.append(v2.RandomErasing(self.erase))
        return v2.Compose(steps) if steps else None

    def augmented(self, images: Tensor, keys: Tensor) -> Tensor:
        """For ``shift`` and ``crop``: pad, crop and flip a batch on its device; others come back as they are.

        Args:
            images: uint8 (B, channels, image_size, image_size).
            keys: int64 (B); an image's augmentation depends on its key alone.
        """
        if self.augment not in ("shift", "crop"):
            return images
        size, margin = self.image_size, self.image_size // 8
        line = torch.arange(size, device=images.device)
        columns = line.expand(len(images), size)
        if self.augment == "crop":
            columns = torch.where((random_keys(keys, 2) % 2 == 0)[:, None], columns, size - 1 - columns)
        rows = line + (random_keys(keys, 0) % (2 * margin + 1))[:, None]
        columns = columns + (random_keys(keys, 1) % (2 * margin + 1))[:, None]
        padded = F.pad(images, (margin,) * 4)
        image = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(self.channels, device=images.device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def to_float(self) -> Transform:
        """uint8 images, one or a batch, to normalised float."""
        return v2.Compose(self._to_float())

    def for_evaluation(self) -> Transform:
        """Resize the shorter side (to image_size / crop where training crops), centre crop, normalise.

        Takes one uint8 image or a batch. Images that have ``image_size`` already only get normalised.
        """
        if self.signals:
            return self.to_float()
        crop = [v2.Resize(self.shorter_side, interpolation=self._mode, antialias=True), v2.CenterCrop(self.image_size)]
        return v2.Compose([*crop, *self._to_float()])

    @property
    def shorter_side(self) -> int:
        """Return what an image's shorter side is resized to before the centre crop."""
        return round(self.image_size / self.crop) if self.any_size else self.image_size

    @property
    def _mode(self) -> v2.InterpolationMode:
        return v2.InterpolationMode(self.interpolation)

    def _to_float(self) -> list[Callable]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
