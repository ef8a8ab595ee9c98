import gzip

import numpy as np
import pytest
import torch

from exitwise.data.sources import fashion_mnist, open_source
from exitwise.errors import DataError


def write(folder, count=12, images=None):
    """The four files, with random content; returns images and targets of both parts."""
    generator, parts = np.random.default_rng(0), {}
    for part in ("train", "t10k"):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8) if images is None else images
        targets = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images", pixels), ("labels", targets)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{part}-{kind}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
        parts[part] = pixels, targets
    return parts


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "FashionMNIST", None)  # downloads nothing
    return tmp_path / "debian"


@pytest.mark.parametrize("place", ["root", "debian"])
def test_the_files_are_read_where_they_are(place, tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(fashion_mnist, "FashionMNIST", FashionMNIST)
    (tmp_path / place).mkdir()
    parts = write(tmp_path / place)
    train, calibration, test = open_source("fashion_mnist", tmp_path / "root", 1, 28)
    assert calibration is None
    assert train.classes[9] == "Ankle boot"
    for source, (images, targets) in ((train, parts["train"]), (test, parts["t10k"])):
        assert torch.equal(source.images[:, 0], torch.from_numpy(images))
        assert source.targets.tolist() == targets.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no gzip"), "expected bytes with 3 axes, in gzip, at .*train-images"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "expected bytes with 3 axes"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\x03" + b"\0" * 12)), "its first bytes are others"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x7f" * 3)), "cannot reshape"),
        (lambda path: write(path.parent, images=np.zeros((12, 4, 4), np.uint8)), "expected images of 28x28 pixels"),
    ],
)
def test_damaged_files_are_named(change, message, tmp_path):
    write(tmp_path)
    change(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=message):
        open_source("fashion_mnist", tmp_path, 1, 28)


def test_no_files_and_no_connection(tmp_path):
    with pytest.raises(
        DataError, match=r"expected fashion_mnist in .* Debian's package dataset-fashion-mnist, or a conn"
    ):
        open_source("fashion_mnist", tmp_path, 1, 28)
