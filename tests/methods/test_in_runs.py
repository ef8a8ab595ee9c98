"""Each part in a run, by its name and defaults: trained, saved, loaded; and a run of several exported."""

import pytest
import torch

import exitwise as ew
from exitwise.catalogue.axes import AXES
from exitwise.runs.build import load_splits

ELSEWHERE = ("heads", "mixed")
"""Regimes of pretrained backbones."""

SINGLE = [
    (axis, name)
    for axis, choices in AXES.items()
    for name in choices.parts
    if name != choices.usual and name not in ELSEWHERE
]
FLAGS = {"epochs": 1, "max_iterations": 2, "batch_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def splits():
    return load_splits(ew.compose("digits"))


def trained(folder, splits, **flags):
    settings = ew.compose("digits", flags={**FLAGS, **flags})
    return ew.train(settings, folder / "run", splits=splits).run


@pytest.mark.parametrize(("axis", "name"), SINGLE)
def test_it_trains_and_is_loaded(axis, name, splits, digits_run, tmp_path):
    teacher = {"distil_from": str(digits_run.run.path)} if name == "distil-run" else {}
    run = trained(tmp_path, splits, **{axis: name}, **teacher)
    assert f"{axis}: {name}\n" in run.config_path.read_text()
    model = run.model()
    images, _ = next(iter(splits.calibration.batches(8)))
    logits = torch.stack(model(images), dim=1)
    assert logits.isfinite().all()
    if axis != "handed_on":  # which is part of the network
        assert model.state_dict().keys() == digits_run.run.model().state_dict().keys()


@pytest.mark.slow
def test_a_run_of_several_is_exported(splits, tmp_path):
    """Export compares the bundle with the network itself."""
    pytest.importorskip("onnx")
    several = {"method": "exit-simulated", "flow": "partition", "loss": "distil-next", "regime": "deepest-first"}
    several["handed_on"] = "collaboration"
    run = trained(tmp_path, splits, **several)
    ew.calibrate(run, budget=0.5, splits=splits, device="cpu")
    ew.export(run, tmp_path / "bundle")
    assert ew.OnnxRunner(tmp_path / "bundle")
