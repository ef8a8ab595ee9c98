import multiprocessing
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image

from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.data.sources import ArraySource, FolderSource, read_image
from exitwise.errors import DataError
from images import make_folder, save_image

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
DIGITS = Preprocessing(8, (0.5,), (0.5,))


def names(split):
    return {split.name(i) for i in range(len(split))}


def test_digits_split_is_disjoint_stratified_and_seeded():
    splits = load("digits", DIGITS, calibration_fraction=0.1, test_fraction=0.2)
    parts = [names(split) for split in splits[:3]]
    assert sum(map(len, parts)) == 1797 == len(set.union(*parts))
    for split, share in zip(splits[:3], (0.7, 0.1, 0.2), strict=True):
        counts = torch.bincount(split.targets, minlength=10)
        assert (counts - share * 179.7).abs().max() < 10
    again = load("digits", DIGITS, calibration_fraction=0.1, test_fraction=0.2)
    other = load("digits", DIGITS, calibration_fraction=0.1, test_fraction=0.2, seed=1)
    assert again.summary() == splits.summary()
    assert other.summary()["sha256"] != splits.summary()["sha256"]
    assert splits.train.shared_with(again.test) == 0
    assert splits.train.shared_with(other.test) == len(parts[0] & names(other.test)) > 100


def test_one_folder_is_split_three_ways(tmp_path):
    splits = load(str(make_folder(tmp_path / "d")), SMALL)
    assert splits.classes == ["dark", "grey", "light"]
    assert [len(split) for split in splits[:3]] == [27, 3, 6]
    assert sum(len(names(split)) for split in splits[:3]) == 36


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(("train", "test"), (33, 3, 36)), (("train", "val"), (33, 3, 36)), (("train", "val", "test"), (36, 36, 36))],
)
def test_folder_layouts(parts, sizes, tmp_path):
    """Validation images calibrate where there are test images too; alone, as in ImageNet's layout, they test."""
    for part in parts:
        make_folder(tmp_path / part)
    splits = load(str(tmp_path), SMALL)
    assert tuple(len(split) for split in splits[:3]) == sizes


def test_folder_of_one_size_is_held_in_memory_and_others_are_read_lazily(tmp_path):
    make_folder(tmp_path)
    assert isinstance(load(str(tmp_path), SMALL).train.source, ArraySource)
    resized = load(str(tmp_path), Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize"))
    assert isinstance(resized.train.source, FolderSource)


def test_images_of_any_size_are_resized_on_request(tmp_path):
    make_folder(tmp_path, size=(30, 20))
    splits = load(str(tmp_path), Preprocessing(16, (0.5,) * 3, (0.5,) * 3, "resize"))
    (images, targets), *_ = splits.test.batches(100)
    assert images.shape == (6, 3, 16, 16)
    assert targets.tolist() == splits.test.targets.tolist()
    batches = TrainingBatches(splits.train, 8, seed=0)
    assert next(iter(batches))[0].shape == (8, 3, 16, 16)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_first_disturbs_no_one(number, tmp_path):
    splits = load(str(make_folder(tmp_path)), Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize"))
    before = set(multiprocessing.active_children())
    batches = iter(TrainingBatches(splits.train, 8, seed=0, workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)  # not by its parent
    worker.join(10)
    time.sleep(0.1)  # here torch would raise
    assert worker.exitcode == 0


@pytest.mark.parametrize("augment", ["none", "shift", "crop", "resize"])
def test_batches_depend_on_seed_epoch_and_number_alone(augment, tmp_path):
    preprocessing = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, augment)
    split = load(str(make_folder(tmp_path)), preprocessing).train

    def batches(workers=0, seed=0, epoch=0, start=0):
        torch.manual_seed(workers)  # the global generator must not matter
        loaded = TrainingBatches(split, 8, seed, workers=workers)
        loaded.sampler.epoch, loaded.sampler.start = epoch, start
        return list(loaded)

    reference = batches()
    assert [len(x) for x, _ in reference] == [8, 8, 8]  # of 27: a rest of 3 cannot be halved
    for other in (batches(), batches(workers=2)):
        torch.testing.assert_close(other, reference, rtol=0, atol=0)
    torch.testing.assert_close(batches(start=2), reference[2:], rtol=0, atol=0)
    assert not torch.equal(batches(seed=1)[0][0], reference[0][0])
    assert not torch.equal(batches(epoch=1)[0][0], reference[0][0])


def test_a_batch_of_workers_stays_until_the_next_is_taken(tmp_path):
    split = load(str(make_folder(tmp_path, count=24)), Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize")).train
    by_itself, by_workers = (TrainingBatches(split, 4, 0, workers=workers) for workers in (0, 2))
    assert by_workers.slots is not None
    for epoch in range(2):
        by_itself.sampler.epoch = by_workers.sampler.epoch = epoch
        for (_, wanted, _), (_, images, _) in zip(by_itself._decoded(), by_workers._decoded(), strict=True):
            time.sleep(0.01)  # workers go on as far as they may
            assert torch.equal(images, wanted)


def test_images_in_memory_and_images_read_one_by_one_make_the_same_batches(tmp_path, monkeypatch):
    preprocessing = Preprocessing(8, (0.5,) * 3, (0.25,) * 3, "crop")
    make_folder(tmp_path)

    def batches():
        return TrainingBatches(load(str(tmp_path), preprocessing).train, 8, seed=3)

    resident = batches()
    monkeypatch.setattr("exitwise.data.sources.files.IN_MEMORY_BYTES", 0)
    lazy = batches()
    assert str(resident) == "27 images, decoded once and kept on cpu (0 MiB)"
    assert str(lazy) == "27 images, read one by one by the training process"
    torch.testing.assert_close(list(resident), list(lazy), rtol=0, atol=0)


def test_augmentation_leaves_the_global_generator_alone(tmp_path):
    split = load(str(make_folder(tmp_path)), Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "crop")).train
    batches = TrainingBatches(split, 8, seed=0)
    before = torch.get_rng_state()
    list(batches)
    list(split.batches(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rest_that_can_be_halved_is_kept(tmp_path):
    split = load(str(make_folder(tmp_path)), SMALL).train
    batches = TrainingBatches(split, 23, seed=0)
    assert [len(x) for x, _ in batches] == [23, 4]
    assert batches.sampler.batches_per_epoch == 2


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_too_small_to_halve_is_refused(batch_size, tmp_path):
    split = load(str(make_folder(tmp_path)), SMALL).train
    with pytest.raises(ValueError, match=f"at least 4, to be trained on in halves; got {batch_size}"):
        TrainingBatches(split, batch_size, seed=0)


def test_modes_are_converted(tmp_path):
    for mode in ("L", "P", "RGBA", "RGB", "1", "CMYK"):
        save_image(tmp_path / f"{mode}.tif", mode=mode)
        assert read_image(tmp_path / f"{mode}.tif", 3).shape == (3, 8, 8)
        assert read_image(tmp_path / f"{mode}.tif", 1).shape == (1, 8, 8)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(8 * 4 * 3, dtype=np.uint8).reshape(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 3).shape == (3, 8, 4)


def bad_missing(root):
    return root / "nowhere"


def bad_empty(root):
    return root


def bad_file(root):
    save_image(root / "a.png")
    return root / "a.png"


def bad_no_images(root):
    (root / "cat").mkdir()
    (root / "cat" / "notes.txt").write_text("meow")
    return root


def bad_single_image_class(root):
    make_folder(root)
    save_image(root / "rare" / "only.png")
    return root


def bad_sizes(root):
    make_folder(root)
    save_image(root / "grey" / "zz.png", size=(9, 8))
    return root


def bad_only_train(root):
    make_folder(root / "train")
    return root


def bad_one_class(root):
    return make_folder(root, classes=("alone",))


def bad_no_train(root):
    make_folder(root / "val")
    make_folder(root / "test")
    return root


def bad_shared_files(root):
    make_folder(root / "train")
    (root / "test").symlink_to(root / "train")
    return root


def bad_unknown_test_class(root):
    make_folder(root / "train")
    make_folder(root / "test", classes=("dark", "grey", "night"))
    return root


BAD = {
    bad_missing: "expected a data set's name or a folder of images; there is no",
    bad_empty: "expected a folder per class with images in .*; found none",
    bad_file: "expected a folder of images, a table or a shard of them .*; .* is a file",
    bad_no_images: "expected a folder per class with images in .*; found none",
    bad_single_image_class: "expected at least 3 images of class 'rare', one for each of calib.*, test, train; got 1",
    bad_sizes: r"expected images of 8x8 pixels .*zz.png has 9x8 .*augment 'resize' takes any size",
    bad_only_train: "expected a folder test or val beside .*train; found neither",
    bad_one_class: "expected at least two class folders with images in .*; found only 'alone'",
    bad_no_train: "expected a folder train beside test, val in .*; found none",
    bad_shared_files: "expected held-out images that are not trained on; .* is in both",
    bad_unknown_test_class: "expected the classes of the training images in .*; got the unknown 'night'",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_data_gets_one_clear_line(make, tmp_path):
    with pytest.raises(DataError, match=BAD[make]) as caught:
        load(str(make(tmp_path)), SMALL)
    assert "\n" not in str(caught.value)


def test_hidden_entries_are_not_data(tmp_path):
    make_folder(tmp_path)
    save_image(tmp_path / ".cache" / "a.png")
    save_image(tmp_path / "dark" / "._a.png")
    splits = load(str(tmp_path), SMALL)
    assert splits.classes == ["dark", "grey", "light"]
    assert sum(len(split) for split in splits[:3]) == 36


def test_near_match_of_a_name():
    with pytest.raises(DataError, match="there is no cifar-10; did you mean 'cifar10'"):
        load("cifar-10", SMALL)


def test_digits_are_grey_and_8x8():
    with pytest.raises(DataError, match="digits has 1 channels; got mean and std of 3"):
        load("digits", SMALL)
    with pytest.raises(DataError, match="digits has images of 8x8 pixels; got image_size 32"):
        load("digits", Preprocessing(32, (0.5,), (0.5,)))


def test_cifar_without_files_or_connection(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("exitwise.data.sources.cifar.CIFAR10", offline)
    with pytest.raises(DataError, match=r"expected cifar10 in .* or a connection to download it; no route to host"):
        load("cifar10", Preprocessing(32, (0.5,) * 3, (0.5,) * 3), root=tmp_path)
