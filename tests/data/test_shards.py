"""Shards: the order in which they are read, and what is refused of them."""

import tarfile

import pytest
import torch

from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.data.sampling import streamed
from exitwise.doctor.data import examine_data
from exitwise.errors import DataError
from exitwise.settings.compose import compose
from images import cut, encoded, make_folder
from shards import add, make_shard, shards_of_folder

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize")
PNG = encoded("PNG")


def samples(count, classes=3, name="{:03d}.png"):
    return [(name.format(k), encoded("PNG", seed=k), k % classes) for k in range(count)]


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """40, 1 and 19 images."""
    root, made = tmp_path_factory.mktemp("unequal"), samples(60)
    for number, (start, end) in enumerate([(0, 40), (40, 41), (41, 60)]):
        make_shard(root / f"{number}.tar", made[start:end])
    return root


def test_shards_are_divided_and_read_as_their_folder_is(tmp_path):
    folder = make_folder(tmp_path / "photos", count=10)
    shards = load(str(shards_of_folder(folder, tmp_path / "shards", 8)), SMALL)
    assert shards.classes == ["0", "1", "2"]
    assert [len(each) for each in shards[:3]] == [len(each) for each in load(str(folder), SMALL)[:3]]
    for position, index in enumerate(shards.train.indices.tolist()):
        name = shards.train.name(position).split("/")[1].replace("_", "/")
        from_folder = load(str(folder), SMALL).train.source
        assert torch.equal(shards.train.source.read(index), from_folder.read(from_folder.names.index(name)))


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_every_image_comes_once_near_its_turn(buffer):
    shards = torch.arange(10).repeat_interleave(torch.tensor([5, 50, 1, 20, 20, 20, 20, 20, 20, 24]))
    order = streamed(shards, torch.Generator().manual_seed(1), buffer)
    assert sorted(order.tolist()) == list(range(200))
    again = streamed(shards, torch.Generator().manual_seed(1), buffer)
    other = streamed(shards, torch.Generator().manual_seed(2), buffer)
    assert torch.equal(order, again)
    assert not torch.equal(order, other)
    turn = list(dict.fromkeys(shards[streamed(shards, torch.Generator().manual_seed(1), 1)].tolist()))
    stream = [position for shard in turn for position in (shards == shard).nonzero().flatten().tolist()]
    for place, position in enumerate(order.tolist()):
        assert stream.index(position) < place + buffer  # none is read before it is in the buffer


def test_resumed_batches_and_shares_are_those_of_a_whole_epoch(unequal):
    """Unequal shards are nothing to processes: each batch is dealt image by image."""
    split = load(str(unequal), SMALL).train
    whole = list(TrainingBatches(split, 8, seed=3))
    resumed = TrainingBatches(split, 8, seed=3, workers=1)
    resumed.sampler.start = 2
    for one, other in zip(whole[2:], resumed, strict=True):
        assert all(map(torch.equal, one, other))
    for one, *shares in zip(whole, *(TrainingBatches(split, 8, 3, rank=k, ranks=2) for k in (0, 1)), strict=True):
        assert (
            sorted(torch.cat([images for images, _ in shares]).flatten(1).sum(1).tolist())
            == sorted(one[0].flatten(1).sum(1).tolist())
            or len(one[0]) < 8
        )
    assert "read one by one from 3 shards by the training process" in str(TrainingBatches(split, 8, seed=3))


@pytest.mark.parametrize("layout", ["{}-{:04d}.tar", "{}/{:04d}.tar", "imagenet1k-{}-{:02d}.tar"])
def test_parts_are_told_by_names_of_files_or_folders(layout, tmp_path):
    for part, count in (("train", 12), ("validation", 6)):
        for number in range(2):
            make_shard(tmp_path / layout.format(part, number), samples(count, name=f"{number}/{{:03d}}.png"))
    splits = load(str(tmp_path), SMALL, calibration_fraction=0.25)
    assert len(splits.test) == 12
    assert len(splits.train) + len(splits.calibration) == 24
    assert {splits.test.name(k).split("/")[0] for k in range(12)} != {splits.train.name(0).split("/")[0]}


def test_labels_and_groups_in_json(tmp_path):
    """``.cls`` counts where there are both; other files of a key are passed over."""
    made = [(f"{k}.png", PNG, {"label": "ab"[k % 2], "patient": k // 4, "width": 8}) for k in range(40)]
    path = make_shard(tmp_path / "a.tar", made)
    with tarfile.open(path, "a") as tar:
        add(tar, "0.txt", b"a caption")
        add(tar, "._1.png", b"of a tool")
    splits = load(str(path), SMALL)
    assert splits.classes == ["a", "b"]
    groups = [set(split.readable_groups()) for split in splits[:3]]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_broken_images_are_entered_by_name(tmp_path):
    files = [*samples(20, 2), ("broken.png", cut(PNG), 0), ("empty.png", b"", 1)]
    path = make_shard(tmp_path / "a.tar", files)
    resized = load(str(path), SMALL)
    readable = [image for part in resized[:3] for image, _ in part.batches(8)]
    in_memory = load(str(path), Preprocessing(8, (0.5,) * 3, (0.5,) * 3))
    for splits in (resized, in_memory):
        assert {name.split("/")[-1]: each.kind for name, each in splits.ledger.skipped.items()} == {
            "broken.png": "damaged",
            "empty.png": "empty",
        }
    assert sum(map(len, readable)) == 20 == sum(len(part) for part in in_memory[:3])
    with pytest.raises(DataError, match=r"expected images of 4x4 pixels .*a.tar/000.png has 8x8"):
        load(str(path), Preprocessing(4, (0.5,) * 3, (0.5,) * 3))


def test_doctor_looks_into_shards(tmp_path):
    path = make_shard(tmp_path / "a.tar", [*samples(20, 2), ("broken.png", cut(PNG), 0), ("twin.png", PNG, 0)])
    settings = compose("digits", flags={"data": str(path), "mean": [0.5] * 3, "std": [0.5] * 3, "max_broken": 0.5})
    examination = examine_data(settings)
    assert len(examination.images) == 22
    said = " ".join(each.text for each in examination.findings)
    assert "skipped 1 (1 damaged)" in said
    assert "1 images are there more than once" in said
    assert "never read" not in said


def whole(path):
    return make_shard(path, samples(6)).read_bytes()


def tar_of(path, *files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            add(tar, name, content)


LABEL = ("a.cls", b"1")
BAD = {
    "of zero length": (lambda path: path.write_bytes(b""), "expected a tar of images and labels at .*; it is empty"),
    "without files": (lambda path: tar_of(path), "expected images and labels .* in .*; found none"),
    "cut in a file": (
        lambda path: path.write_bytes(whole(path)[:2000]),
        "expected a whole tar.*unexpected end of data",
    ),
    "cut between files": (lambda path: path.write_bytes(whole(path)[:4096]), "whole tar.*its end mark is missing"),
    "cut in a header": (lambda path: path.write_bytes(whole(path)[:4300]), "whole tar.*end mark is missing"),
    "no tar": (lambda path: path.write_bytes(b"nothing" * 200), "expected a whole tar, not compressed, at"),
    "no label": (lambda path: tar_of(path, ("a.png", PNG)), r"a label, a.cls or a.json, beside a.png in .*found none"),
    "no image": (lambda path: tar_of(path, LABEL), "expected an image beside a.cls in .*; found none"),
    "two images": (lambda path: tar_of(path, ("a.png", PNG), ("a.jpg", PNG), LABEL), "one image .* a.png and a.jpg"),
    "an empty label": (lambda path: tar_of(path, ("a.png", PNG), ("a.cls", b" ")), "expected a label in .*a.cls"),
    "json without": (lambda path: tar_of(path, ("a.png", PNG), ("a.json", b"{}")), "expected a label in .*a.json"),
    "labels": (
        lambda path: tar_of(path, ("a.png", PNG), ("a.json", b'{"label": [1, 2]}')),
        "expected one label in .*a.json; got several labels of one sample",
    ),
    "no json": (lambda path: tar_of(path, ("a.png", PNG), ("a.json", b"{")), "expected an object in JSON in .*a.json"),
    "a list": (lambda path: tar_of(path, ("a.png", PNG), ("a.json", b"[]")), "expected an object .*; it has a list"),
    "mixed": (
        lambda path: make_shard(path, [("a.png", PNG, 1), ("b.png", PNG, "cat")]),
        "one kind .* number 1 .*a.png.* name 'cat'",
    ),
    "one label": (lambda path: make_shard(path, samples(6, 1)), "expected at least two labels in .*; got only '0'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shards_get_one_line(name, tmp_path):
    make, message = BAD[name]
    (tmp_path / "shards").mkdir()
    make(tmp_path / "shards" / "0.tar")
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "shards"), SMALL)
    assert "\n" not in str(caught.value)


def test_names_that_say_a_part_in_some_shards_alone(tmp_path):
    make_shard(tmp_path / "train-0.tar", samples(6))
    make_shard(tmp_path / "more-0.tar", samples(6))
    with pytest.raises(DataError, match=r"of none; more-0.tar says nothing"):
        load(str(tmp_path), SMALL)
    (tmp_path / "train-0.tar").rename(tmp_path / "val-0.tar")
    (tmp_path / "more-0.tar").rename(tmp_path / "test-0.tar")
    with pytest.raises(DataError, match=r"expected shards to train on in .*; got test and val alone"):
        load(str(tmp_path), SMALL)


def test_an_archive_beside_class_folders_is_no_shard(tmp_path):
    make_shard(make_folder(tmp_path / "photos") / "backup.tar", samples(6))
    assert load(str(tmp_path / "photos"), SMALL).classes == ["dark", "grey", "light"]


def test_labels_unknown_in_training(tmp_path):
    make_shard(tmp_path / "train.tar", samples(6))
    make_shard(tmp_path / "val.tar", samples(8, 4))
    with pytest.raises(DataError, match=r"labels of the training samples in .*; got '3' \(.*val.tar/003.png\)"):
        load(str(tmp_path), SMALL)
