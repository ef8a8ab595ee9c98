"""Data sets with broken and odd images: the counts are exact, the batches deterministic, and too many stop."""

import pickle
from collections import Counter

import pytest
import torch

from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.errors import DataError
from images import Malicious, broken_files, encoded, make_folder, odd_files, save_image, write_files

EQUAL_SIZES = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
RESIZED = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, "resize")


def read_all(splits, workers=0):
    for split in splits[:3]:
        list(split.batches(16, workers))


def damage(path):
    """Break an image so that its header is whole."""
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture
def damaged(tmp_path):
    """A folder whose class grey has damaged images, three of them neighbours; and these."""
    root = make_folder(tmp_path / "photos")
    paths = [root / "grey" / f"{k:02d}.png" for k in (3, 4, 5, 9)]
    for path in paths:
        damage(path)
    return root, {str(path) for path in paths}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_is_counted_exactly(workers, tmp_path):
    root = make_folder(tmp_path / "photos")
    broken, odd = broken_files(tmp_path / "executed"), odd_files()
    paths = write_files(root / "grey", broken)
    write_files(root / "light", odd)
    splits = load(str(root), RESIZED)
    kinds = Counter(kind for _, _, kind in broken.values())
    read_all(splits, workers)
    assert splits.ledger.summary() == {
        "images": 36 + len(broken) + len(odd),
        "skipped": dict(sorted(kinds.items())),
        "converted": dict(sorted(Counter(kind for *_, kinds in odd.values() for kind in kinds).items())),
    }
    assert set(splits.ledger.skipped) == set(map(str, paths))
    assert not (tmp_path / "executed").exists()


def test_images_in_memory_are_all_decoded_at_once(tmp_path):
    root = make_folder(tmp_path / "photos")
    equal = {name: file for name, file in broken_files(tmp_path / "executed").items() if "jpeg" not in name}
    equal = {name: file for name, file in equal.items() if name not in ("truncated webp", "truncated tiff")}
    write_files(root / "grey", equal)
    write_files(root / "light", odd_files())
    splits = load(str(root), EQUAL_SIZES)
    assert len(splits.ledger.skipped) == len(equal)
    assert sum(map(len, splits[:3])) == 36 + len(odd_files())
    assert load(str(root), EQUAL_SIZES).summary() == splits.summary()


def test_what_is_read_does_not_change_the_record(damaged):
    splits = load(str(damaged[0]), RESIZED)
    before = splits.summary()
    read_all(splits)
    assert splits.summary() == before == load(str(damaged[0]), RESIZED).summary()


def by_hand(split, broken):
    """For each position of a split, that of the image trained on: the next of its class which is not broken."""
    readable = [str(split.source.paths[index]) not in broken for index in split.indices.tolist()]
    targets = split.targets.tolist()
    chosen = []
    for position, target in enumerate(targets):
        while not (readable[position] and targets[position] == target):
            position = (position + 1) % len(targets)
        chosen.append(position)
    return chosen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_training_image_is_replaced_by_the_next_of_its_class(workers, damaged, monkeypatch):
    monkeypatch.setattr("exitwise.data.sources.files.IN_MEMORY_BYTES", 0)  # so that no random crop hides what is read
    root, broken = damaged
    split = load(str(root), EQUAL_SIZES).train
    chosen = by_hand(split, broken)
    batches = TrainingBatches(split, 8, seed=0, workers=workers)
    order = torch.cat(batches.sampler.positions()).tolist()
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    to_float = EQUAL_SIZES.to_float()
    expected = [to_float(split.source.read(int(split.indices[chosen[position]]))) for position in order]
    assert torch.equal(images, torch.stack(expected))
    assert targets.tolist() == split.targets[torch.tensor(order)].tolist()
    drawn = {str(split.source.paths[int(split.indices[position])]) for position in order}
    assert set(split.source.ledger.skipped) == drawn & broken


def test_the_account_is_the_same_for_any_number_of_workers(damaged):
    def skipped(workers):
        splits = load(str(damaged[0]), RESIZED)
        batches = TrainingBatches(splits.train, 8, seed=1, workers=workers)
        list(batches)
        return list(splits.ledger.skipped.values())

    assert skipped(0) == skipped(1) == skipped(2) != []


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_held_out_images_are_left_out(workers, damaged):
    root, broken = damaged
    for name in ("val", "train"):
        make_folder(root.parent / "parts" / name)
    test = root.parent / "parts" / "test"
    root.rename(test)
    splits = load(str(root.parent / "parts"), RESIZED)
    batches = list(splits.test.batches(4, workers))  # of grey, a whole batch but one image is broken
    assert [len(images) for images, _ in batches] == [4, 4, 4, 3, 2, 3, 4, 4, 4]
    assert torch.cat([targets for _, targets in batches]).bincount().tolist() == [12, 8, 12]
    assert len(splits.test) == 36
    assert {path.rsplit("/", 1)[1] for path in splits.ledger.skipped} == {path.rsplit("/", 1)[1] for path in broken}


def test_a_batch_without_a_readable_image_is_left_out(tmp_path):
    for name in ("train", "test"):
        make_folder(tmp_path / name)
    for path in (tmp_path / "test" / "grey").iterdir():
        damage(path)
    splits = load(str(tmp_path), RESIZED)
    assert [len(images) for images, _ in splits.test.batches(4)] == [4] * 6


def test_a_class_without_a_readable_training_image_stops(tmp_path):
    root = make_folder(tmp_path)
    for path in (root / "grey").iterdir():
        damage(path)
    batches = TrainingBatches(load(str(root), RESIZED).train, 8, seed=0, workers=1)
    with pytest.raises(
        DataError, match=r"training images of class 'grey'; all .* broken, such as .*grey.*png \(damaged"
    ):
        list(batches)


def test_too_many_broken_images_stop_at_the_start(tmp_path):
    root = make_folder(tmp_path, count=20)
    for k in range(4):
        (root / "grey" / f"{k:02d}.png").write_bytes(b"")
    named = ", ".join(f"{root}/grey/{k:02d}.png (empty: the file is empty)" for k in range(3))
    message = f"expected at most 0.05 of the images to be broken (max_broken); got 4 of 60: {named} and 1 more"
    for preprocessing in (EQUAL_SIZES, RESIZED):
        with pytest.raises(DataError) as caught:
            load(str(root), preprocessing, max_broken=0.05)
        assert str(caught.value) == message
        assert len(load(str(root), preprocessing, max_broken=4 / 60).ledger.skipped) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_while_training(workers, damaged):
    splits = load(str(damaged[0]), RESIZED, max_broken=0)
    with pytest.raises(
        DataError, match=r"at most 0 of the images .* got [1-4] of 36: .*damaged: image file is truncated"
    ):
        list(TrainingBatches(splits.train, 4, seed=0, workers=workers))


def test_the_limit_is_over_all_parts(tmp_path):
    for name in ("train", "val", "test"):
        make_folder(tmp_path / name)
    (tmp_path / "train" / "grey" / "03.png").write_bytes(b"")
    load(str(tmp_path), RESIZED, max_broken=1 / 108)
    with pytest.raises(DataError, match="got 1 of 108"):
        load(str(tmp_path), RESIZED, max_broken=0.99 / 108)


def test_a_ledger_counts_an_image_once_and_tells_of_changes():
    ledger, changes = ImageLedger(), []
    ledger.images = 10
    ledger.conversions = {"a": ("palette", "alpha"), "b": ("palette",)}
    ledger.on_change = lambda: changes.append(len(ledger.skipped))
    assert str(ledger) == "converted 1 alpha, 2 palette"
    ledger.skip([Skipped("b", "damaged", "cut"), Skipped("c", "empty", "")])
    ledger.skip([Skipped("b", "damaged", "cut")])
    assert changes == [2]
    assert str(ledger) == "skipped 2 (1 damaged, 1 empty), converted 1 alpha, 1 palette"
    assert str(ImageLedger()) == ""


def test_other_files_are_never_opened(tmp_path):
    root = make_folder(tmp_path / "photos")
    for name in ("a.pkl", "b.npy", "c.pt", "d.pth.tar", "e.pickle"):
        (root / "grey" / name).write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    splits = load(str(root), RESIZED)
    read_all(splits)
    assert splits.ledger.summary() == {"images": 36, "skipped": {}, "converted": {}}
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_tampered_cifar_is_not_unpickled(name, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    folder, files = {
        "cifar10": ("cifar-10-batches-py", [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]),
        "cifar100": ("cifar-100-python", ["train", "test", "meta"]),
    }[name]
    (tmp_path / folder).mkdir()
    for file in files:
        (tmp_path / folder / file).write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(DataError, match=rf"expected {name} in .* or a connection to download it"):
        load(name, Preprocessing(32, (0.5,) * 3, (0.5,) * 3), root=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_malicious_pickle_would_be_noticed(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_names_that_are_not_utf8(tmp_path):
    root = make_folder(tmp_path)
    save_image(root / "grey" / "x.png")
    (root / "grey" / "x.png").rename(root / "grey" / "caf\udce9.png")
    (root / "grey" / "bad\udce9.png").write_bytes(encoded()[:-40])
    splits = load(str(root), EQUAL_SIZES)
    assert len(splits.summary()["sha256"]) == 3
    assert len(splits.ledger.skipped) == 1
