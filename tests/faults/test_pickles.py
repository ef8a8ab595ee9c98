"""Pickles that would run code, in every place that weights, settings or graphs are loaded from."""

import hashlib
import json
import pickle
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import torch

from exitwise import create_model
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.models.authors import load_authors_checkpoint
from exitwise.runs.folder import Run
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def plain(path, trap):
    path.write_bytes(pickle.dumps({"state_dict": trap}))


def torch_zip(path, trap):
    torch.save({"state_dict": {"a": torch.ones(2)}, "trap": trap}, path)


def torch_legacy(path, trap):
    torch.save({"state_dict": {"a": torch.ones(2)}, "trap": trap}, path, _use_new_zipfile_serialization=False)


def tar(path, trap):
    inner = path.with_name("pickle")
    for name in ("sys_info", "pickle", "storages", "tensors"):
        plain(inner.with_name(name), trap)
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.add(inner.with_name(name), name)


def objects(path, trap):
    with path.open("wb") as file:
        np.savez(file, a=np.array([trap], dtype=object))


FORMS = (plain, torch_zip, torch_legacy, tar, objects)


def checkpoint(form, trap, folder):
    """A checkpoint whose tensors are a pickle, with a manifest that says that this is right."""
    save_checkpoint(folder / "last-00000001", {"a": torch.ones(2)})
    tensors, state = folder / "last-00000001" / "tensors.safetensors", folder / "last-00000001" / "state.json"
    form(tensors, trap)
    content = json.loads(state.read_text())
    content["sha256"]["tensors"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
    state.write_text(json.dumps(content))
    CheckpointFolder(folder).load("last")


def state(form, trap, folder):
    save_checkpoint(folder / "c", {"a": torch.ones(2)})
    form(folder / "c" / "state.json", trap)
    load_checkpoint(folder / "c")


def authors(form, trap, folder):
    form(folder / "model_best.pth.tar", trap)
    load_authors_checkpoint(create_model("msdnet_cifar_5"), folder / "model_best.pth.tar")


def authors_arrays(form, trap, folder):
    form(folder / "model.npz", trap)
    load_authors_checkpoint(create_model("msdnet_cifar_5"), folder / "model.npz")


def authors_safetensors(form, trap, folder):
    form(folder / "model.safetensors", trap)
    load_authors_checkpoint(create_model("msdnet_cifar_5"), folder / "model.safetensors")


def bundle_manifest(form, trap, folder):
    form(folder / "manifest.json", trap)
    OnnxRunner(folder)


def bundle_graph(form, trap, folder):
    """A bundle with a manifest that says that this is right."""
    form(folder / "0.onnx", trap)
    sha256 = hashlib.sha256((folder / "0.onnx").read_bytes()).hexdigest()
    entry = {"file": "0.onnx", "sha256": sha256, "inputs": ["state_0"], "outputs": ["probabilities"]}
    manifest = {"format": "exitwise-onnx", "version": 1, "classes": ["a", "b"], "num_classes": 2, "exit_macs": [1]}
    manifest |= {"thresholds": [], "input_shape": [3, 8, 8], "preprocessing": {}, "stages": [entry], "single": entry}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    OnnxRunner(folder)


def run_settings(form, trap, folder):
    form(folder / "config.yaml", trap)
    Run(folder)


def yaml_tag(path, trap):
    path.write_text(f"data: !!python/object/apply:builtins.open ['{trap.marker}', 'w']\n")


PATHS = (checkpoint, state, authors, authors_arrays, authors_safetensors, bundle_manifest, bundle_graph, run_settings)
CASES = [*((path, form) for path in PATHS for form in FORMS), (run_settings, yaml_tag)]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles(tmp_path, report):
    refused = 0
    for path, form in CASES:
        folder = tmp_path / f"{path.__name__} {form.__name__}"
        folder.mkdir()
        marker = folder / "executed"
        with pytest.raises(ValueError):
            path(form, Trap(marker), folder)
        refused += not marker.exists()
    report("malicious pickle loaded; refused without executing it", len(CASES), refused)


@pytest.mark.parametrize("form", FORMS)
def test_the_traps_work(form, tmp_path):
    """Else nothing above could have been executed."""
    path = tmp_path / "file"
    form(path, Trap(tmp_path / "executed"))
    with suppress(Exception):
        if form is plain:
            pickle.loads(path.read_bytes())
        elif form is objects:
            np.load(path, allow_pickle=True)["a"]
        else:
            torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()
