import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from exitwise.errors import UserError
from exitwise.storage.tensors import read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)}


def test_what_training_programs_keep_beside_the_weights_is_passed_over(tmp_path):
    average = {name: value + 1 for name, value in STATE.items()}
    content = {"epoch": 3, "arch": "x", "args": argparse.Namespace(lr=0.1), "state_dict": STATE, "metric": Metric(2)}
    torch.save(content, tmp_path / "timm.pth.tar")
    torch.testing.assert_close(read_weights(tmp_path / "timm.pth.tar"), STATE)
    torch.save({**content, "state_dict_ema": average}, tmp_path / "average.pth.tar")
    torch.testing.assert_close(read_weights(tmp_path / "average.pth.tar"), average)


class Metric:
    """A class that no loader would call harmless."""

    made = 0

    def __init__(self, value):
        Metric.made += 1
        self.value = value

    def __reduce__(self):
        return Metric, (self.value,), {"x": 1}


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save({"model": STATE, "metric": Metric(1)}, tmp_path / "w.pt")
    made = Metric.made
    read_weights(tmp_path / "w.pt")
    assert Metric.made == made
    torch.save(Metric(1), tmp_path / "object.pt")
    with pytest.raises(UserError, match=r"got an object: save its state_dict\(\) instead"):
        read_weights(tmp_path / "object.pt")


def test_shards(tmp_path):
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "model-1.safetensors")
    torch.save({"b.weight": STATE["b.weight"]}, tmp_path / "model-2.bin")
    index = {"weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-2.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(read_weights(tmp_path / "model.safetensors.index.json"), STATE)
    torch.testing.assert_close(read_weights(tmp_path), STATE)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "no.safetensors"}}', r"expected no\.safetensors beside .*index\.json; found none"),
        ('{"weight_map": {"a": "../w.safetensors"}}', r"expected files beside .*; it lists '\.\./w\.safetensors'"),
        ('{"weight_map": {"z": "w.safetensors"}}', r"expected z in .*w\.safetensors, as .* says; found none"),
        ("{}", "expected an index with a weight_map in"),
        ("[", "expected an index with a weight_map in"),
    ],
)
def test_wrong_indexes(tmp_path, index, message):
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "x.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.index.json")


def test_errors_are_whole_and_plain(tmp_path):
    with pytest.raises(UserError, match=r"expected model\.safetensors, .* or pytorch_model.*; found none"):
        read_weights(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    for name, content, reason in (
        ("w.pt", None, "it is a pickle that may run code: save a state_dict, by torch.save or as safetensors"),
        ("w.pth", b"junk", "it is damaged, or no file of torch.save"),
        ("w.bin", b"", "it is damaged, or no file of torch.save"),
        ("w.safetensors", b"junk", "it is damaged, or no safetensors file"),
        ("w.npz", b"junk", "it is damaged, or no archive of NumPy arrays"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"could not read it: {reason}$"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 1, "weights": STATE}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="weights are looked for under state_dict_ema, "):
        read_weights(tmp_path / "other.pt")
