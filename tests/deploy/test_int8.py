"""Bundles in eight bits: calibrated anew for the same wish, compared with float32, and refused where they lose too
much; and bundles that are sealed again."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise import OnnxRunner
from exitwise.cli import main
from exitwise.deploy.calibration import CALIBRATION, Calibration
from exitwise.deploy.sessions import open_session
from exitwise.models.staged import Stage, StagedModel
from exitwise.storage.protobuf import BundleError

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A run of its own, calibrated for a budget."""
    folder = shutil.copytree(digits_run.run.path, tmp_path_factory.mktemp("runs") / "digits")
    ew.calibrate(folder, budget=0.6, splits=digits_run.splits)
    return folder


def held_out(splits):
    return [(images, targets) for images, targets in splits.calibration.batches(100)]


def of_held_out(folder, splits):
    runner = OnnxRunner(folder)
    pairs = held_out(splits)
    results = [runner(images.numpy()) for images, _ in pairs]
    targets = np.concatenate([targets.numpy() for _, targets in pairs])
    prediction, macs = (np.concatenate([getattr(r, name) for r in results]) for name in ("prediction", "macs"))
    return (prediction == targets).mean(), macs.mean() / runner.exit_macs[-1]


@pytest.mark.parametrize("how", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_a_run_in_eight_bits(digits_run, run, tmp_path, how, capsys):
    out = tmp_path / "small"
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--int8", how, "--out", str(out)])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("float32", "int8", "last exit", "calibrated anew for the same wish"))
    accuracy, share = of_held_out(out, digits_run.splits)
    calibration = CALIBRATION.read(out)
    former = CALIBRATION.read(run)
    assert calibration.budget == former.budget == {"budget": 0.6}
    assert share == pytest.approx(calibration.expected["macs"] / calibration.exit_macs[-1], abs=0.01)
    assert share <= 0.6 + 0.01
    assert accuracy == pytest.approx(calibration.expected["accuracy"], abs=0.01)
    assert accuracy > former.expected["accuracy"] - 0.05
    assert OnnxRunner(out).has_single
    images = held_out(digits_run.splits)[0][0].numpy()
    by_stages, single = OnnxRunner(out).by_stages(images), OnnxRunner(out).one_by_one(images)
    assert (by_stages.exit == single.exit).mean() > 0.95
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]
    if how == "static":
        assert calibration.policy.thresholds != former.policy.thresholds
        assert b"QuantizeLinear" in (out / "stage_0.onnx").read_bytes()


@pytest.fixture
def linear(digits_run):
    """A linear classifier of the digits at both exits: exported in a second."""
    train = list(digits_run.splits.train.batches(64))
    images, targets = (torch.cat(part) for part in zip(*train, strict=True))
    heads = [nn.Linear(images[0].numel(), 10) for _ in range(2)]
    optimizer = torch.optim.Adam([param for head in heads for param in head.parameters()], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(head(images.flatten(1)), targets) for head in heads).backward()
        optimizer.step()
    bodies = nn.Flatten(), nn.Identity()
    return StagedModel(map(Stage, bodies, heads), 10, tuple(images.shape[1:])).eval()


@pytest.mark.slow
def test_a_loss_beyond_the_wish_is_refused(digits_run, linear, tmp_path, monkeypatch):
    ruined = OnnxRunner.logits

    def logits(self, inputs):
        found = ruined(self, inputs)
        return found if "float32" in str(self.folder) else found[:, :, ::-1].copy()

    model, out = linear, tmp_path / "small"
    pairs = held_out(digits_run.splits)
    calibration = ew.calibrate(model, pairs, max_accuracy_drop=0.02)
    exported = ew.export(model, calibration, out, int8="static", held_out=pairs)
    float32, int8 = exported.precisions
    assert int8.accuracy >= float32.full_accuracy - 0.02 - 1e-9
    assert "int8" in str(exported)
    monkeypatch.setattr(OnnxRunner, "logits", logits)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ew.UserError, match=r"expected eight bits \(static\) to lose at most 2 points .* the last exit"):
        ew.export(model, calibration, out, int8="static", held_out=pairs, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    calibration = ew.calibrate(model, pairs, budget=0.6)
    with pytest.warns(ew.ExitwiseWarning, match=r"held-out accuracy is .* % in eight bits \(static\), .* % in float32"):
        ew.export(model, calibration, tmp_path / "other", int8="static", held_out=pairs)


def test_what_cannot_be_repeated_is_refused(digits_run, run, tmp_path):
    model = digits_run.run.model()
    pairs = held_out(digits_run.splits)
    calibration = ew.calibrate(model, pairs, budget=0.6)
    bare = Calibration.of(calibration.policy, calibration.exit_macs)
    for arguments, options, message in (
        ((model, bare), {"int8": "static", "held_out": pairs}, "got thresholds without a wish"),
        ((model, calibration), {"int8": "static"}, "expected held_out, a loader; got none"),
        ((model, calibration), {"held_out": pairs}, "held-out samples are for int8"),
        ((run,), {"int8": "static", "held_out": pairs}, "held-out samples are for int8"),
        ((run,), {"int8": "binary"}, "expected int8 as dynamic or static, with format onnx; got 'binary'"),
        ((run,), {"int8": "static", "format": "pt2"}, "with format onnx; got 'static' with pt2"),
    ):
        with pytest.raises(ew.UserError, match=message):
            ew.export(*arguments, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_was_changed_on_purpose_is_sealed(run, tmp_path, capsys):
    folder = tmp_path / "bundle"
    ew.export(run, folder)
    for name, change in (
        ("manifest.json", lambda content: content["classes"].__setitem__(0, "null")),
        ("calibration.json", lambda content: content["thresholds"].__setitem__(0, 0.75)),
    ):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(BundleError):
        OnnxRunner(folder)
    with pytest.raises(SystemExit) as stop:
        main(["export", "--seal", str(folder)])
    assert stop.value.code == 0
    runner = OnnxRunner(folder)
    assert (runner.classes[0], runner.thresholds[0]) == ("null", 0.75)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps({**content, "thresholds": [0.5]}))
    for place, message in ((folder, "expected 3 thresholds"), (run, "expected a bundle with manifest.json at")):
        with pytest.raises(SystemExit) as stop:
            main(["export", "--seal", str(place)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"calibration.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_copies_of_the_quantiser_take_no_name_that_is_there(tmp_path):
    """A copy of the bias ``val_11`` is called ``val_110``, as another value is."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from exitwise.deploy.formats.int8 import quantise_graph

    ones = np.ones(4, np.float32)
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4, 1)).astype(np.float32), "scale": ones, "val_11": ones}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    for number in (1, 2, 3):
        before = "c" if number == 1 else f"n{number - 1}"
        nodes.append(
            helper.make_node("InstanceNormalization", [before, "scale", "val_11"], [f"n{number}"], f"n{number}")
        )
    nodes += [helper.make_node("Erf", ["n3"], ["val_110"]), helper.make_node("Add", ["val_110", "c"], ["y"])]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 8]) for name in "xy"]
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", sides[:1], sides[1:], initial), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "a.onnx")
    given = np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)
    quantise_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", "static", [{"x": given}], "it")
    float32, eight = (
        open_session((tmp_path / f"{name}.onnx").read_bytes()).run(None, {"x": given})[0] for name in "ab"
    )
    assert abs(float32 - eight).max() < 0.1
