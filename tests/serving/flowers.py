"""What the served bundle knows, and images for it."""

import io

import numpy as np
from PIL import Image

CLASSES = ["<b>rose</b>", "tulip", "oak", "fern"]
MACS = (100, 200, 400)


def pngs(count, seed=0):
    """Files of images, each with a bright half somewhere."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        pixels = generator.integers(0, 120, (8, 8))
        pixels[:, : generator.integers(1, 8)] += generator.integers(0, 130)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files
