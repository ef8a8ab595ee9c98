import pytest
import torch

from exitwise.errors import ExitwiseWarning
from exitwise.training.checkpoint import CheckpointError, load_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder


def tree(value):
    return {"value": torch.tensor(value)}


def names(path):
    return sorted(each.name for each in path.iterdir())


def damage(path):
    content = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(content[:-1])


@pytest.fixture
def filled(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for iteration in (1, 20, 100):
        folder.save("last", iteration, tree(iteration))
    return folder


@pytest.mark.parametrize(("keep", "kept"), [(1, [100]), (2, [20, 100]), (3, [5, 20, 100])])
def test_the_newest_are_kept_and_the_best(keep, kept, tmp_path):
    folder = CheckpointFolder(tmp_path, keep)
    assert folder.latest("last") is None
    assert folder.load("last") is None
    for iteration in (1, 5, 20, 100):
        folder.save("last", iteration, tree(iteration))
        folder.save("best", iteration, tree(iteration))
    assert names(tmp_path) == ["best-00000100", *(f"last-{iteration:08d}" for iteration in kept)]
    assert folder.latest("last").name == "last-00000100"
    assert folder.load("last").tree["value"] == 100


def test_the_one_before_a_damaged_one_is_taken_with_one_warning(filled):
    damage(filled.root / "last-00000100")
    with pytest.warns(ExitwiseWarning, match="last-00000100 is damaged: .*; continuing from last-00000020") as warned:
        assert filled.load("last").tree["value"] == 20
    assert len(warned) == 1


def test_none_that_is_intact(filled):
    for path in filled.root.iterdir():
        damage(path)
    with pytest.raises(CheckpointError, match=r"100 is damaged: .*; there is no other .*: remove .* to start"):
        filled.load("last")


@pytest.mark.parametrize("iteration", [30, 100])
def test_a_damaged_one_goes_with_the_next_save(iteration, filled):
    damage(filled.root / "last-00000100")
    filled.save("last", iteration, tree(iteration))
    assert names(filled.root) == ["last-00000020", f"last-{iteration:08d}"]
    assert load_checkpoint(filled.latest("last"))["value"] == iteration


def test_what_a_killed_process_left_is_removed(filled):
    for name in (".last-00000300.tmp", ".last-00000001.old"):
        (filled.root / name).mkdir()
        (filled.root / name / "tensors.safetensors").write_bytes(b"half")
    filled.tidy()
    assert names(filled.root) == ["last-00000020", "last-00000100"]


def test_what_is_no_checkpoint_is_left_alone(filled):
    folder, newest = filled, filled.latest("last")
    strange = [".DS_Store", "last-notes.txt", f"{newest.name}-backup", f"{newest.name}.bak"]
    for name in strange:
        (folder.root / name).mkdir() if "backup" in name else (folder.root / name).write_text("")
    folder.tidy()
    assert folder.latest("last") == newest
    folder.save("last", 99, {"a": torch.ones(1)})
    assert {path.name for path in folder.root.iterdir()} >= {*strange, "last-00000099"}


def test_json_within_json_without_end_is_damage(filled):
    newest = filled.latest("last")
    (newest / "state.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.warns(ExitwiseWarning, match="is damaged: .*; continuing from"):
        assert filled.load("last").path != newest
