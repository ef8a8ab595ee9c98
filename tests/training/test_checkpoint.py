import json

import pytest
import torch

from exitwise.training.checkpoint import CheckpointError, CheckpointFolder, load_checkpoint, save_checkpoint

TREE = {
    "weights": {"a": torch.randn(3, 2), "step": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "state": {0: {"buffer": torch.arange(4)}, 1: {"none": None, "flag": True}},
    "history": [{"epoch": 1, "loss": 0.1}, []],
    "name": "x",
    "infinite": float("inf"),
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
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of version 1 at .*; got 99"):
        load_checkpoint(tmp_path / "c")


def test_a_failed_save_leaves_the_old_one_and_no_debris(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save("last", 1, TREE)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exitwise.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save("last", 2, TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["last-00000001"]


def test_the_newest_of_each_kind_is_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    assert folder.latest("last") is None
    for iteration in (1, 20, 100):
        folder.save("last", iteration, TREE)
    folder.save("best", 20, TREE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000020", "last-00000100"]
    assert folder.latest("last").name == "last-00000100"


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        load_checkpoint(tmp_path / "c")
