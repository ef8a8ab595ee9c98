"""Folders as people have them: linked, with what tools leave in them, and parts under other names."""

import warnings

import pytest

from exitwise.data import Preprocessing, load
from exitwise.data.sources.layout import layout_of
from exitwise.errors import DataError, ExitwiseWarning
from images import make_folder, save_image

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)


def empty_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_linked_folders_are_followed_once(tmp_path):
    """A class whose images lay in a linked folder was left out without a word."""
    real = make_folder(tmp_path / "real")
    linked = tmp_path / "linked"
    for name in ("dark", "grey", "light"):
        (linked / name).mkdir(parents=True)
    (linked / "dark" / "part").symlink_to(real / "dark")
    (linked / "grey" / "a" / "b").mkdir(parents=True)
    (linked / "grey" / "a" / "b" / "part").symlink_to(real / "grey")
    for path in (real / "light").iterdir():
        (linked / "light" / path.name).symlink_to(path)
    (linked / "dark" / "round").symlink_to(linked / "dark")
    (linked / "dark" / "up").symlink_to(tmp_path)
    (linked / "grey" / "twice").symlink_to(real / "grey")
    (real / "grey" / "back").symlink_to(linked / "grey")
    splits = load(str(linked), SMALL)
    assert splits.classes == ["dark", "grey", "light"]
    assert sum(map(len, splits[:3])) == 36


def test_what_tools_leave_is_not_read_at_any_level(tmp_path):
    """Thumbnails and checkpoints beside images were both trained and tested on."""
    make_folder(tmp_path)
    for folder in (
        "__MACOSX/dark",
        "@eaDir/dark",
        "dark/.ipynb_checkpoints",
        "grey/@eaDir/00.png",
        "grey/sub/__MACOSX",
    ):
        save_image(tmp_path / folder / "00.png")
    splits = load(str(tmp_path), SMALL)
    assert splits.classes == ["dark", "grey", "light"]
    assert sum(map(len, splits[:3])) == 36


def test_jfif_is_jpeg(tmp_path):
    make_folder(tmp_path)
    for k in range(4):
        save_image(tmp_path / "new" / f"{k}.jpg")
        (tmp_path / "new" / f"{k}.jpg").rename(tmp_path / "new" / f"{k}.JFIF")
    assert load(str(tmp_path), SMALL).classes == ["dark", "grey", "light", "new"]


def test_a_folder_without_readable_images_is_named(tmp_path):
    make_folder(tmp_path)
    empty_images(tmp_path, "phone/a.heic", "phone/b.heic", "phone/notes.txt")
    (tmp_path / "nothing").mkdir()
    with pytest.warns(ExitwiseWarning, match=r"phone holds no image .* and is no class: 2 \.heic, 1 \.txt"):
        assert load(str(tmp_path), SMALL).classes == ["dark", "grey", "light"]


def parts(root, *names):
    return empty_images(root, *(f"{name}/{c}/x.png" for name in names for c in ("cat", "dog")))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("train", "validation", "test"),
        ("Train", "Val", "Test"),
        ("training", "dev", "testing"),
        ("training_set", None, "test_set"),
        ("TrainingSet", None, "TestSet"),
        ("train2017", "val2017", None),
        ("imgs-train", "imgs-val", "imgs-eval"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("training", "validation", None),
    ],
)
def test_parts_are_known_by_many_names(names, tmp_path):
    """Training went on without the validation images, or learned to tell training from test images."""
    parts(tmp_path, *(name for name in names if name))
    empty_images(tmp_path, "pictures of us/x.png", "pred/1.png")
    assert layout_of(tmp_path) == tuple(name and tmp_path / name for name in names)


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("bullet_train", "steam_train", "bus"),
        ("train station", "bus station"),
        ("test_tube", "beaker"),
        ("strain", "contest"),
    ],
)
def test_classes_may_be_called_like_parts(classes, tmp_path):
    empty_images(tmp_path, *(f"{name}/{k}.png" for name in classes for k in range(2)))
    assert layout_of(tmp_path) is None


REFUSED = {
    ("train/x.png", "test/x.png"): "expected a folder per class in .*test, as in test, train; it holds images alone",
    ("Train/a/x.png", "Train/b/x.png", "Test/x.png"): "expected a folder per class in .*Test",
    ("train/a/x.png", "training/a/x.png", "test/a/x.png"): "one folder of train images in .*; got train and training",
    ("seg_test/a/x.png", "seg_val/a/x.png"): "expected a folder train beside seg_test, seg_val in .*; found none",
    ("photos/a/x.png", "photos/b/x.png"): r"found only 'photos' \(give .*photos, which holds a, b\?\)",
}


@pytest.mark.parametrize("names", REFUSED)
def test_parts_that_cannot_be_used_are_refused(names, tmp_path):
    empty_images(tmp_path, *names)
    with pytest.raises(DataError, match=REFUSED[names]) as caught:
        load(str(tmp_path), SMALL)
    assert "\n" not in str(caught.value)


def test_validation_images_calibrate_whatever_they_are_called(tmp_path):
    for name, count in (("train", 6), ("valid", 3), ("test", 2)):
        make_folder(tmp_path / name, count=count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load(str(tmp_path), SMALL)
    assert [len(split) for split in splits[:3]] == [18, 9, 6]
