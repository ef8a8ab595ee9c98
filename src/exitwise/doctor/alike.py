"""Pictures that look the same: one saved anew, or in another size. Found by a difference hash, told by thumbnails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
BANDS = 4
"""Pictures are compared if a quarter of their hashes is equal."""

MOST_ALIKE = 50
"""Of more pictures than this with an equal quarter, as plain ones have, none is compared."""

DIFFERENCE, CONTRAST = 2.0, 8.0
"""Most mean difference of grey values of pictures that are the same, and least standard deviation within one that is
not too plain to say anything of."""


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return 8 rows of 9 grey values, which an image keeps when it is saved anew or resized."""
    return np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX))


def alike(thumbnails: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each two pictures that look the same, in order."""
    grey = np.array(thumbnails, dtype=np.int16).reshape(-1, SIDE, SIDE + 1)
    plain = grey.std(axis=(1, 2)) < CONTRAST
    bands = np.packbits((np.diff(grey) > 0).reshape(len(grey), SIDE * SIDE), axis=1).view(f"V{SIDE // BANDS}")
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for position in np.flatnonzero(~plain).tolist():
        for band in range(BANDS):
            buckets[band, bands[position, band].tobytes()].append(position)
    pairs = {pair for bucket in buckets.values() if len(bucket) <= MOST_ALIKE for pair in combinations(bucket, 2)}
    for first, other in sorted(pairs):
        if abs(grey[first] - grey[other]).mean() <= DIFFERENCE:
            yield first, other
