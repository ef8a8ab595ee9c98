"""Augmentation and normalisation (torchvision transforms v2), as one record that training and prediction share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

Augment = Literal["none", "shift", "crop", "resize"]
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image between its file and the network.

    Attributes:
        image_size: side of the square image that the network sees.
        mean, std: per channel, of pixels in [0, 1].
        augment: for training: ``none``; ``shift``: pad by an eighth, random crop; ``crop``: shift and flip
            (CIFAR's); ``resize``: random resized crop and flip (ImageNet's). All but ``resize`` take
            images that have ``image_size`` already.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = "none"

    def __post_init__(self) -> None:
        if self.augment not in get_args(Augment):
            raise ValueError(f"augment must be one of {', '.join(get_args(Augment))}; got {self.augment!r}")

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    @property
    def any_size(self) -> bool:
        """Whether images of any size can be trained on."""
        return self.augment == "resize"

    def for_training(self) -> Transform:
        """uint8 (channels, H, W) to float (channels, image_size, image_size), drawing from torch's generator."""
        shift = v2.RandomCrop(self.image_size, padding=self.image_size // 8)
        steps: Sequence[Callable] = {
            "none": [],
            "shift": [shift],
            "crop": [shift, v2.RandomHorizontalFlip()],
            "resize": [v2.RandomResizedCrop(self.image_size, antialias=True), v2.RandomHorizontalFlip()],
        }[self.augment]
        return v2.Compose([*steps, *self._to_float()])

    def for_evaluation(self) -> Transform:
        """Resize the shorter side (to 8/7 of image_size where training crops), centre crop, normalise.

        Images that have ``image_size`` already only get normalised.
        """
        shorter = round(self.image_size * 8 / 7) if self.any_size else self.image_size
        crop = [v2.Resize(shorter, antialias=True), v2.CenterCrop(self.image_size)]
        return v2.Compose([*crop, *self._to_float()])

    def _to_float(self) -> list[Callable]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
