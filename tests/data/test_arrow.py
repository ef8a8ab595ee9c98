"""Data sets of Hugging Face's library: which columns and splits are taken, and what is refused."""

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from exitwise.data import Preprocessing, load
from exitwise.errors import DataError, ExitwiseWarning
from images import cut, encoded

datasets = pytest.importorskip("datasets")

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize")
EXACT = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
NAMES = ["cat", "dog", "eel"]


def made(count=30, labels=None, start=0, **columns):
    images = [{"bytes": encoded("PNG", seed=start + k), "path": None} for k in range(count)]
    values = [k % 3 for k in range(count)] if labels is None else labels
    return datasets.Dataset.from_dict({"image": images, "label": values, **columns}).cast_column(
        "image", datasets.Image()
    )


def saved(data, root):
    data.save_to_disk(root / "saved")
    return str(root / "saved")


def test_splits_classes_and_pixels(tmp_path):
    parts = {"train": made(), "validation": made(9, start=100), "test": made(6, labels=[-1] * 6, start=200)}
    named = {name: part.cast_column("label", datasets.ClassLabel(names=NAMES)) for name, part in parts.items()}
    with pytest.warns(ExitwiseWarning, match="split test of .* has no labels and is left out"):
        splits = load(saved(datasets.DatasetDict(named), tmp_path), SMALL)
    assert splits.classes == NAMES
    assert [len(part) for part in splits[:3]] == [27, 3, 9]
    expected = pil_to_tensor(parts["validation"][4]["image"])
    assert torch.equal(splits.test.source.read(4), expected)
    assert splits.test.name(4) == "validation/00000004"


def test_rows_that_were_chosen_and_broken_ones(tmp_path):
    images = [{"bytes": encoded("PNG", seed=k), "path": None} for k in range(20)]
    images[3]["bytes"], images[8] = cut(images[3]["bytes"]), None
    data = datasets.Dataset.from_dict({"picture": images, "Class": ["ab"[k % 2] for k in range(20)]})
    data = data.cast_column("picture", datasets.Image()).select(range(19, -1, -1))
    for preprocessing in (SMALL, EXACT):
        splits = load(saved(data, tmp_path / preprocessing.augment), preprocessing)
        readable = sum(len(x) for part in splits[:3] for x, _ in part.batches(8))
        assert readable == 18
        assert sorted(each.kind for each in splits.ledger.skipped.values()) == ["damaged", "empty"]
    source = load(str(tmp_path / "none" / "saved"), EXACT).train.source
    assert source.stamp(0) != source.stamp(1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: datasets.Dataset.from_dict({"image": ["a", "b"], "label": [0, 1]}),
            "images in .*; image holds string",
        ),
        (
            lambda: datasets.Dataset.from_dict({"text": ["a"], "label": [0]}),
            "one column of images in .*; got text, label",
        ),
        (lambda: made(3, labels=[[0, 1], [1], [2]]), "label holds several labels of one sample; .*no multi-label"),
        (lambda: made(6).rename_column("label", "mood"), "one column of labels in .*; got image, mood"),
        (
            lambda: (
                made(6, fine=[0] * 6, coarse=[0] * 6)
                .remove_columns("label")
                .cast_column("fine", datasets.ClassLabel(names=NAMES))
                .cast_column("coarse", datasets.ClassLabel(names=NAMES))
            ),
            r"got fine, coarse \(call one of them label: rename_column\)",
        ),
        (lambda: made(6, labels=["1", "cat", "1", "cat", "1", "cat"]), r"one kind in .* number 1 \(row 0\)"),
        (lambda: datasets.DatasetDict(one=made(6), two=made(6)), "expected a split train in .*; got one, two"),
        (lambda: datasets.DatasetDict(train=made(6), test=made(6, labels=[7] * 6)), r"got '7' \(row 0\)"),
    ],
)
def test_what_cannot_be_used_gets_one_line(data, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        load(saved(data(), tmp_path), SMALL)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder(tmp_path):
    path = saved(made(6), tmp_path)
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match="expected a data set of the library datasets at") as caught:
        load(path, SMALL)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, configuration):
        asked.append((name, configuration))
        return datasets.DatasetDict(train=made())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("hf/someone/pictures", SMALL).train) == 21
    load("hf/someone/pictures:small", SMALL)
    assert asked == [("someone/pictures", None), ("someone/pictures", "small")]


def test_a_name_without_a_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"at hf/someone/pictures; Couldn't reach the Hub$"):
        load("hf/someone/pictures", SMALL)
