"""Small image folders for tests: each class has its own brightness, so that there is something to learn."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, size=(8, 8), mode="RGB", level=128, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).convert(mode).save(path)


def make_folder(root: Path, classes=("dark", "grey", "light"), count=12, **options) -> Path:
    for c, name in enumerate(classes):
        for i in range(count):
            save_image(root / name / f"{i:02d}.png", level=60 + 70 * c, seed=100 * c + i, **options)
    return root
