"""Pickles that would run code, in every place that weights, settings or graphs are loaded from."""

import hashlib
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch

from exitwise import create_model
from exitwise.models.authors import load_authors_checkpoint
from exitwise.runs import Run
from exitwise.runtime import predict
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder
from images import save_image


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
    predict(folder, [folder / "image.png"])


def bundle_graph(form, trap, folder):
    """With a manifest that says that this is right, if there is a bundle to take it from."""
    form(folder / "stage1.onnx", trap)
    files = {"stage1.onnx": hashlib.sha256((folder / "stage1.onnx").read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "sha256": files}))
    predict(folder, [folder / "image.png"])


def run_settings(form, trap, folder):
    form(folder / "config.yaml", trap)
    Run(folder)


def run_settings_yaml(form, trap, folder):
    (folder / "config.yaml").write_text(f"data: !!python/object/apply:builtins.open ['{trap.marker}', 'w']\n")
    Run(folder)


PATHS = (
    checkpoint,
    state,
    authors,
    authors_arrays,
    authors_safetensors,
    bundle_manifest,
    bundle_graph,
    run_settings,
    run_settings_yaml,
)


def test_pickles(tmp_path, report):
    injected, refused = 0, 0
    for path in PATHS:
        for form in FORMS:
            folder = tmp_path / f"{path.__name__} {form.__name__}"
            folder.mkdir()
            save_image(folder / "image.png")
            marker = folder / "executed"
            with pytest.raises(ValueError):
                path(form, Trap(marker), folder)
            injected += 1
            refused += not marker.exists()
    report("malicious pickle loaded; refused without executing it", injected, refused)


@pytest.mark.parametrize("form", FORMS)
def test_the_traps_work(form, tmp_path):
    """Else nothing above could have been executed."""
    form(tmp_path / "file", Trap(tmp_path / "executed"))
    if form is objects:
        np.load(tmp_path / "file", allow_pickle=True)["a"]
    elif form is not tar:
        torch.load(tmp_path / "file", weights_only=False) if form is not plain else pickle.loads(
            (tmp_path / "file").read_bytes()
        )
    if form is not tar:
        assert (tmp_path / "executed").exists()
