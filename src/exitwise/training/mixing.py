"""Mixup and CutMix of half batches, by timm: images of two samples in one, and labels in the same shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor, nn

from exitwise.data.sampling import derive_seed
from exitwise.weighting.passes import Batch


class Mixing:
    """Mixes the samples of a batch in pairs from its ends: the first with the last, and so on.

    Where both are asked for, each is as likely for a batch. Of an odd batch the last sample stays as it is.

    Args:
        mixup: both parameters of the Beta distribution that mixup's shares are drawn from (Zhang et al., ICLR 2018); 0:
            no mixup.
        cutmix: the same for CutMix (Yun et al., ICCV 2019).
        classes: their number.
        seed: of all random numbers.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self.mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes)
        self.classes, self.seed = classes, seed

    def __call__(self, batch: Batch, *key: int) -> Batch:
        """Return the batch mixed: images anew, and a probability of each class for each, (B, C).

        Args:
            batch: images and class indices; it is not changed.
            key: what the random numbers depend on, besides the seed.
        """
        images, targets = batch[0].clone(), batch[1]
        mixed: Tensor = nn.functional.one_hot(targets, self.classes).float()
        if even := len(images) // 2 * 2:
            with _numpy_from(derive_seed(self.seed, *key)):
                _, mixed[:even] = self.mix(images[:even], targets[:even])
        return images, mixed


@contextmanager
def _numpy_from(seed: int) -> Iterator[None]:
    """Let NumPy's global generator, which timm draws from, start at a seed within, and be as before afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
