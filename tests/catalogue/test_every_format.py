"""Every export format: a folder with a manifest, written whole, which may be replaced by another export."""

import hashlib
import json

import pytest
import torch
from torch import nn

from exitwise import ExitPolicy, Stage, StagedModel, UserError, count_cost
from exitwise.catalogue.formats import FORMATS
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import CALIBRATION, Calibration


def network():
    """Return a network of two exits, a layer each."""
    first = Stage(nn.Flatten(), nn.Linear(64, 3))
    second = Stage(nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 3))
    return StagedModel([first, second], 3, (1, 8, 8)).eval()


@pytest.mark.parametrize("format", FORMATS)
def test_writes_what_its_manifest_says_and_replaces_exports_alone(format, tmp_path):
    pytest.importorskip("onnx")
    write, model, out = FORMATS[format].load(), network(), tmp_path / "out"
    about = {"classes": list("abc"), "preprocessing": Preprocessing(8, (0.5,), (0.5,)), "name": "two layers"}
    calibrations = [Calibration.of(ExitPolicy([threshold]), count_cost(model).macs) for threshold in (0.4, 0.5, 0.6)]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    write(model, calibrations[0], out, **about)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == f"exitwise-{format}"
    assert CALIBRATION.read(out) == calibrations[0]
    assert (manifest["classes"], manifest["model"]) == (list("abc"), "two layers")
    named = [*manifest["stages"], *manifest.get("data", []), *([manifest["single"]] if "single" in manifest else [])]
    written = {path.name for path in out.iterdir()}
    assert written == {"manifest.json", "calibration.json", *(entry["file"] for entry in named)}
    for entry in named:
        assert hashlib.sha256((out / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]

    with pytest.raises(UserError, match="expected nothing at"):
        write(model, calibrations[1], out, **about)
    write(model, calibrations[2], out, **about, overwrite=True)
    assert CALIBRATION.read(out) == calibrations[2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
