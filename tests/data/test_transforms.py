"""Batched augmentation against a loop over images and pixels."""

from dataclasses import replace

import pytest
import torch

from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.data.sampling import random_keys
from exitwise.data.transforms import POLICIES

MASK = 2**64 - 1


def splitmix64(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def random_key(key, salt):
    return splitmix64(splitmix64((key + salt * 0x9E3779B97F4A7C15) & MASK)) & (2**63 - 1)


def test_random_keys_equal_python_integers():
    keys = [0, 1, 2, 12345, 2**62, 2**63 - 1]
    for salt in (0, 1, 7, 2**63 - 1):
        assert random_keys(torch.tensor(keys), salt).tolist() == [random_key(key, salt) for key in keys]


def augmented(image, key, margin, flip):
    """One image, pixel by pixel."""
    size = image.shape[-1]
    top, left = (random_key(key, salt) % (2 * margin + 1) - margin for salt in (0, 1))
    mirrored = flip and random_key(key, 2) % 2 == 1
    result = torch.zeros_like(image)
    for y in range(size):
        for x in range(size):
            source_y, source_x = y + top, (size - 1 - x if mirrored else x) + left
            if 0 <= source_y < size and 0 <= source_x < size:
                result[:, y, x] = image[:, source_y, source_x]
    return result


@pytest.mark.parametrize("augment", ["shift", "crop"])
def test_a_batch_is_augmented_as_its_images_one_by_one(augment):
    preprocessing = Preprocessing(16, (0.5,) * 3, (0.5,) * 3, augment)
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8)
    keys = random_keys(torch.arange(20), 5)
    expected = [augmented(image, key, 2, augment == "crop") for image, key in zip(images, keys.tolist(), strict=True)]
    result = preprocessing.augmented(images, keys)
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))
    assert torch.equal(preprocessing.augmented(images[7:9], keys[7:9]), result[7:9])


def test_offsets_and_flips_are_uniform():
    keys = random_keys(torch.arange(50_000), 1)
    for salt, kinds in ((0, 9), (1, 9), (2, 2)):
        counts = torch.bincount(random_keys(keys, salt) % kinds).double()
        expected = len(keys) / kinds
        assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-squared with 8 degrees: 26 at 0.1 %
    joint = torch.bincount(random_keys(keys, 0) % 9 * 9 + random_keys(keys, 1) % 9).double()
    assert ((joint - len(keys) / 81) ** 2 / (len(keys) / 81)).sum() < 130  # with 80 degrees: 125 at 0.1 %


def test_no_augmentation_leaves_images_alone():
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    assert Preprocessing(8, (0.5,), (0.5,)).augmented(images, torch.arange(2)) is images


@pytest.fixture(scope="module")
def digits():
    return load("digits", Preprocessing(8, (0.3,), (0.4,), "shift")).train


@pytest.mark.parametrize("options", [*({"policy": name} for name in POLICIES), {"erase": 0.5}])
def test_what_happens_to_an_image_depends_on_its_key_alone(digits, options):
    def epochs(**more):
        preprocessing = replace(digits.preprocessing, **{**options, **more})
        batches = TrainingBatches(replace(digits, indices=digits.indices[:32], preprocessing=preprocessing), 16, 3)
        found = []
        for batches.sampler.epoch in (0, 1):
            found += [images for images, _ in batches]
        return torch.cat(found)

    once = epochs()
    assert once.shape == (64, 1, 8, 8)
    assert torch.equal(once, epochs())
    assert (once[:32] != once[32:]).any()
    other = {"policy": "none", "erase": 0.25} if "policy" in options else {"erase": 1.0}
    assert (epochs(**other) != once).any()


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="policy must be none or one of rand, trivial, auto, augmix; got 'mix'"):
        Preprocessing(8, (0.5,), (0.5,), policy="mix")
