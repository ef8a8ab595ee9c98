import json

import pytest
import torch
from safetensors import SafetensorError

from exitwise.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder

TREE = {
    "weights": {"a": torch.randn(3, 2), "step": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "state": {0: {"buffer": torch.arange(4)}, 1: {"none": None, "flag": True}},
    "history": [{"epoch": 1, "loss": 0.1}, []],
    "name": "x",
    "large": 1e300,
}


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    else:
        assert ours == theirs


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    assert_same(load_checkpoint(tmp_path / "c"), TREE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_strided_and_shared_tensors_survive(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    tree = {"t": base.T, "same": base, "again": base}
    save_checkpoint(tmp_path / "c", tree)
    torch.testing.assert_close(load_checkpoint(tmp_path / "c"), tree, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_detected(name, damage, tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[0] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "c")


def test_another_version_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    path = tmp_path / "c" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match=r"of version 1 at .*; got 99: use it with the exitwise that wrote it"):
        load_checkpoint(tmp_path / "c")


def test_every_single_bit_counts(tmp_path):
    save_checkpoint(tmp_path / "c", {"é": torch.ones(2), "path": 'a\\"b'})
    for path in (tmp_path / "c").iterdir():
        content = path.read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError):
                load_checkpoint(tmp_path / "c")
        path.write_bytes(content)
    load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.tensor(float("inf")), float("nan")])
def test_a_value_that_is_not_finite_is_never_written(value, tmp_path):
    save_checkpoint(tmp_path / "c", TREE)
    with pytest.raises(CheckpointError, match=r"finite numbers to save; model.0.weight holds another"):
        save_checkpoint(tmp_path / "c", {"model": [{"weight": value}]})
    assert_same(load_checkpoint(tmp_path / "c"), TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_a_failed_save_leaves_the_old_one_and_no_debris(error, tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save("last", 1, TREE)

    def full(*args):
        raise error

    monkeypatch.setattr("exitwise.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"could not save .*last-00000002: .*the checkpoints before it are kept"):
        folder.save("last", 2, TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["last-00000001"]


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        load_checkpoint(tmp_path / "c")
