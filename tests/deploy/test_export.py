"""ONNX bundles: the same answers as the network, without torch, and nothing loaded that was tampered with."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise import EarlyExitRunner, ExitPolicy, calibrate_proportions, count_cost, create_model
from exitwise.cli import main
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import CALIBRATION, Calibration
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.evaluation.outputs import collect_logits
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outputs import Outputs
from exitwise.models.staged import Stage, StagedModel
from exitwise.runs.folder import Run
from exitwise.storage.protobuf import BundleError, external_data
from images import save_image

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(digits_run):
    ew.calibrate(digits_run.run.path, proportions=[0.4, 0.3, 0.2, 0.1], splits=digits_run.splits)
    return digits_run


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "digits"
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.run.path), "--out", str(out)])
    assert stop.value.code == 0
    return out


def images_of(run, count=1000):
    parts = [images for split in run.splits[:3] for images, _ in split.batches(500)]
    return torch.cat(parts)[:count]


def safe(model, policy, images):
    """Images whose confidences stay 1e-5 away from every threshold."""
    logits, targets = collect_logits(model, [(images, torch.zeros(len(images), dtype=torch.int64))])
    confidences = Outputs.from_logits(logits, targets, policy.measure).confidences
    limits = np.array([t if t is not None else 9.0 for t in policy.thresholds])
    return (np.abs(confidences[:, :-1] - limits) > 1e-5).all(axis=1)


@pytest.mark.slow
def test_every_form_gives_the_same_exit_and_class(run, bundle):
    model, policy = run.run.model(), run.run.read_calibration().policy
    images = images_of(run)
    assert len(images) == 1000
    keep = safe(model, policy, images)
    assert keep.mean() > 0.98
    runner, onnx = EarlyExitRunner(model, policy), OnnxRunner(bundle)
    eager = runner(images)
    assert len(set(eager.exit.tolist())) == 4
    forms = {
        "batches of 1": [runner(image) for image in images.split(1)],
        "batches of 64": [runner(batch) for batch in images.split(64)],
        "compiled": [EarlyExitRunner(model, policy, compile=True)(images)],
        "ONNX stages, 1000": [onnx(images.numpy())],
        "ONNX stages, 7": [onnx(batch.numpy()) for batch in images.split(7)],
        "ONNX stages, 1": [onnx.by_stages(image.numpy()) for image in images.split(1)],
        "ONNX If": [onnx.one_by_one(images.numpy())],
        "ONNX If, by itself": [onnx(image.numpy()) for image in images.split(1)],
    }
    for name, results in forms.items():
        prediction, exit, confidence, macs = (
            np.concatenate([np.asarray(part) for part in parts])
            for parts in zip(*(result[:4] for result in results), strict=True)
        )
        assert (exit == eager.exit.numpy())[keep].all(), name
        assert (prediction == eager.prediction.numpy())[keep].all(), name
        np.testing.assert_allclose(confidence[keep], eager.confidence.numpy()[keep], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(macs[keep], eager.macs.numpy()[keep])


def test_thresholds_can_be_changed_while_it_runs(run, bundle):
    onnx = OnnxRunner(bundle)
    images = images_of(run, 50).numpy()
    onnx.thresholds = [None] * 3
    assert onnx(images).exit.tolist() == [3] * 50
    onnx.thresholds = (0.0, None, None)
    assert onnx(images).exit.tolist() == [0] * 50
    assert onnx(images[:1]).exit.tolist() == [0]
    for wrong, message in (
        ([0.5], "expected 3 thresholds"),
        ([float("nan")] * 3, "must be finite"),
        ([10**400] * 3, "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            onnx.thresholds = wrong
    with pytest.raises(ValueError, match="expected a monitor of 4 exits; got one of 2"):
        OnnxRunner(bundle, monitor=Monitor(2))


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "scipy", "onnx", "pydantic"):
    sys.modules[name] = None  # importing it fails
import numpy as np
from exitwise import OnnxRunner, predict
runner = OnnxRunner(sys.argv[1])
result = runner(np.zeros((5, 1, 8, 8), np.float32))
assert result.prediction.shape == (5,)
print(predict(sys.argv[1], [sys.argv[2]])[0].prediction)
"""


def test_a_bundle_runs_where_torch_cannot_be_imported(run, bundle, tmp_path):
    save_image(tmp_path / "x.png", mode="L")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(bundle), str(tmp_path / "x.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    code = "import sys; sys.modules['torch'] = None; from exitwise.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", str(bundle), str(tmp_path / "x.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "1 image" in result.stdout


def test_files_are_read_as_the_network_reads_them(run, bundle, tmp_path):
    for i, size in enumerate([(8, 8), (20, 8), (8, 30)]):
        save_image(tmp_path / f"{i}.png", size=size, mode="L", seed=i)
    files = sorted(tmp_path.glob("*.png"))

    wanted, found = ew.predict(run.run.path, files), ew.predict(bundle, files)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.file, ours.prediction, ours.exit) == (theirs.file, theirs.prediction, theirs.exit)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def edit(change):
    def apply(folder):
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


def altered(folder):
    path = folder / "stage_1.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_calibration(change, reseal=True):
    """Change the calibration and, if wished, its own digest."""
    from exitwise.deploy.bundle import _digest_of

    def apply(folder):
        path = folder / "calibration.json"
        content = json.loads(path.read_text())
        change(content)
        content.pop("sha256")
        path.write_text(json.dumps({**content, "sha256": _digest_of(content) if reseal else "0"}))

    return apply


def resigned(name, change):
    """Change a file and its digest in the manifest alike."""
    import hashlib

    def apply(folder):
        content = change((folder / name).read_bytes())
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries = lambda m: [*m["stages"], m["single"], *m["data"]]  # noqa: E731
        edit(lambda m: [e.update(sha256=digest) for e in entries(m) if e["file"] == name])(folder)

    return apply


def external(**said):
    """Change where the first tensor outside says that it is."""

    def change(content):
        import onnx

        model = onnx.load_from_string(content)
        tensor = next(each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL)
        for entry in tensor.external_data:
            entry.value = str(said.get(entry.key, entry.value))
        return model.SerializeToString()

    return change


def altered_weights(folder):
    path = folder / "stage_0.data"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unsealed(content):
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def external_in_a_branch(content):
    import onnx

    model = onnx.load_from_string(content)
    branches = next(node for node in model.graph.node if node.op_type == "If").attribute
    inner = [tensor for branch in branches for tensor in branch.g.initializer]
    outside = next(each for each in inner if each.data_location == onnx.TensorProto.EXTERNAL)
    outside.external_data[0].value = "elsewhere.data"
    return model.SerializeToString()


def external_constant(content):
    import onnx

    model = onnx.load_from_string(content)
    constant = next(node for node in model.graph.node if node.op_type == "Constant").attribute[0].t
    outside = next(each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL)
    constant.CopyFrom(outside)
    return model.SerializeToString()


def linked(folder):
    (folder.parent / "elsewhere.onnx").write_bytes((folder / "stage_2.onnx").read_bytes())
    (folder / "stage_2.onnx").unlink()
    (folder / "stage_2.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def linked_manifest(folder):
    (folder / "manifest.json").rename(folder.parent / "elsewhere.json")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere.json")


def resealed(change):
    """Change the manifest, and what the files say of it, alike."""
    import onnx

    from exitwise.deploy.bundle import read_sealed, seal

    def apply(folder):
        from exitwise.deploy.bundle import write_sealed
        from exitwise.deploy.manifest import read_manifest

        path = folder / "manifest.json"
        calibration = read_sealed(folder, read_manifest(path, path))
        edit(change)(folder)
        manifest = json.loads(path.read_text())
        for file in folder.glob("*.onnx"):
            model = onnx.load(file, load_external_data=False)
            onnx.helper.set_model_props(model, seal(manifest, file.name))
            resigned(file.name, lambda _, model=model: model.SerializeToString())(folder)
        write_sealed(folder, json.loads(path.read_text()), calibration)

    return apply


def wish(manifest):
    return manifest["inputs"][0]["preprocessing"]


CRAFTED = {
    "stages that are a number": (edit(lambda m: m.update(stages=5)), "expected a file for each stage"),
    "a single that is a number": (edit(lambda m: m.update(single=5)), "expected a file for each stage and a single"),
    "a stage for the single": (edit(lambda m: m.update(single=m["stages"][0])), "disagrees with the manifest: it was"),
    "no stage": (edit(lambda m: m["stages"].__setitem__(0, {})), "expected the name of a file"),
    "no shape": (edit(lambda m: m["inputs"][0].update(shape=[])), "expected inputs with name, type, shape and"),
    "no inputs": (edit(lambda m: m.update(inputs=[])), "expected inputs with name, type, shape and"),
    "an input twice": (edit(lambda m: m["inputs"].append(m["inputs"][0])), "expected inputs of different names"),
    "an input of objects": (edit(lambda m: m["inputs"][0].update(type="object")), "expected inputs with name, type"),
    "cost beyond numbers": (edit(lambda m: m["exit_macs"].__setitem__(3, 10**400)), "expected exit_macs that rise"),
    "endless reference": (
        edit_calibration(lambda c: c["reference"].update(images=float("inf"))),
        "expected thresholds",
    ),
    "empty reference": (edit_calibration(lambda c: c["reference"].update(shares=[])), "expected thresholds of exits"),
    "another threshold": (
        edit_calibration(lambda c: c["thresholds"].__setitem__(0, 0.123), reseal=False),
        "calibration.json is not what was written",
    ),
    "an unknown measure": (edit_calibration(lambda c: c.update(measure="luck")), "luck"),
    "a measure for fewer exits": (edit_calibration(lambda c: c.update(temperatures=[2])), "expected 4 temperatures"),
    "no table": (edit_calibration(lambda c: c.pop("table")), "expected thresholds of exits"),
    "a table of other exits": (
        edit_calibration(lambda c: c["table"][0].update(thresholds=[0.5])),
        "expected 3 thresholds in its table",
    ),
    "a table upside down": (edit_calibration(lambda c: c["table"].reverse()), "expected budgets that rise"),
    "another cost": (edit_calibration(lambda c: c["exit_macs"].__setitem__(3, 10**9)), "the manifest's exit_macs"),
    "calibration of another version": (edit_calibration(lambda c: c.update(version=99)), "expected version 1 to"),
    "calibration of another schema": (
        edit_calibration(lambda c: c.update(schema="x")),
        "expected exitwise/calibration",
    ),
    "calibration of another bundle": (edit_calibration(lambda c: c.update(manifest="0")), "made for another bundle"),
    "no calibration": (lambda folder: (folder / "calibration.json").unlink(), "expected calibration.json in"),
    "calibration that is a list": (lambda folder: (folder / "calibration.json").write_text("[]"), "expected a calibr"),
    "another measure in the single": (
        edit(lambda m: m["single"].update(measure="entropy")),
        "made for another bundle",
    ),
    "classes in another order": (edit(lambda m: m["classes"].reverse()), "disagrees with the manifest"),
    "a graph of another export": (resigned("single.onnx", lambda content: unsealed(content)), "disagrees with the man"),
    "manifest by a link": (linked_manifest, "found a link"),
    "missing file": (lambda folder: (folder / "stage_3.onnx").unlink(), "expected a file stage_3.onnx in"),
    "renamed file": (lambda folder: (folder / "stage_3.onnx").rename(folder / "stage_9.onnx"), "stage_3.onnx"),
    "altered file": (altered, "its SHA-256 differs"),
    "absolute path": (edit(lambda m: m["stages"][0].update(file="/etc/passwd")), "expected the name of a file"),
    "parent path": (edit(lambda m: m["single"].update(file="../single.onnx")), "expected the name of a file"),
    "symbolic link": (linked, "found a link"),
    "truncated file": (resigned("stage_0.onnx", lambda content: content[: len(content) // 2]), "truncated"),
    "no ONNX": (resigned("single.onnx", lambda content: b"\xff" * 100), "ONNX file"),
    "altered weights": (altered_weights, "its SHA-256 differs"),
    "other weights": (resigned("stage_0.data", lambda content: content[::-1]), "made for another bundle"),
    "missing weights": (lambda folder: (folder / "stage_0.data").unlink(), "expected a file stage_0.data in"),
    "weights elsewhere": (edit(lambda m: m["data"][0].update(file="../x.data")), "expected the name of a file"),
    "weights that are not named": (edit(lambda m: m["data"].pop(0)), "keeps data in other files"),
    "external data": (resigned("stage_0.onnx", external(location="/etc/passwd")), "keeps data in other files"),
    "external data beyond its file": (
        resigned("stage_0.onnx", external(offset=2**40)),
        "where there is no such tensor",
    ),
    "external data before it": (resigned("stage_0.onnx", external(offset=-64)), "where there is no such tensor"),
    "external data between numbers": (resigned("stage_0.onnx", external(offset=1)), "where there is no such tensor"),
    "external data of another length": (resigned("stage_0.onnx", external(length=4)), "where there is no such tensor"),
    "external data in a branch": (resigned("single.onnx", external_in_a_branch), "keeps data in other files"),
    "external data of a constant": (resigned("single.onnx", external_constant), "keeps data in other files"),
    "stages swapped": (edit(lambda m: m["stages"].reverse()), "disagrees with|cannot"),
    "wrong names": (edit(lambda m: m["stages"][0].update(outputs=["confidence"])), "disagrees with the manifest"),
    "threshold of text": (edit_calibration(lambda c: c.update(thresholds=["a", None, None])), "expected thresholds"),
    "threshold that is infinite": (
        edit_calibration(lambda c: c.update(thresholds=[1e999, None, None])),
        "must be finite",
    ),
    "too few thresholds": (edit_calibration(lambda c: c.update(thresholds=[0.5])), "expected 3 thresholds"),
    "another version": (edit(lambda m: m.update(version=99)), "expected a bundle of version 1 to 2"),
    "another format": (edit(lambda m: m.update(format="zip")), "expected a manifest of format exitwise-onnx"),
    "no classes": (edit(lambda m: m.pop("classes")), "expected classes in"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "expected JSON at"),
    "nested without end": (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "expected JSON at"),
    "size of another network": (
        edit(lambda m: m["inputs"][0].update(shape=["batch", 1, 9, 9])),
        "expected an input_shape",
    ),
    "size throughout": (
        resealed(
            lambda m: [m["inputs"][0].update(shape=["batch", 1, 9, 9]), wish(m).update(image_size=9, shorter_side=9)]
        ),
        "disagrees with the manifest: it takes images",
    ),
    "type throughout": (resealed(lambda m: m["inputs"][0].update(type="float64")), "it takes images of tensor.float"),
    "huge images": (edit(lambda m: wish(m).update(shorter_side=10**9)), "expected a shorter_side"),
    "unknown preprocessing": (edit(lambda m: wish(m).update(kind="sound")), "expected a preprocessing of kind image"),
    "mean that is no number": (edit(lambda m: wish(m).update(mean=[float("nan")])), "expected mean as a"),
    "std of zero": (edit(lambda m: wish(m).update(std=[0])), "expected std as a number per channel"),
    "interpolation": (edit(lambda m: wish(m).update(interpolation="magic")), "expected an interpolation"),
    "falling costs": (edit(lambda m: m["exit_macs"].reverse()), "expected exit_macs that rise"),
    "a class twice": (edit(lambda m: m.update(classes=["a"] * 10)), "expected different names of classes"),
    "classes of another number": (edit(lambda m: m["classes"].pop()), "expected 10 classes"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_bundles_are_refused(bundle, tmp_path, name, capsys):
    craft, message = CRAFTED[name]
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    craft(folder)
    with pytest.raises(BundleError, match=message):
        OnnxRunner(folder)
    save_image(tmp_path / "x.png", mode="L")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(folder), str(tmp_path / "x.png")])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 8, 9), np.float32),
        np.zeros((2, 3, 8, 8), np.float32),
        np.zeros((2, 1, 8, 8)),
        np.zeros((1, 8, 8), np.float32),
    ],
)
def test_images_of_another_kind_are_refused(bundle, images):
    with pytest.raises(ValueError, match=r"expected float32 images \(B, 1x8x8\); got"):
        OnnxRunner(bundle)(images)


def test_what_is_there_is_not_overwritten(run, bundle, capsys):
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.run.path), "--out", str(bundle)])
    assert stop.value.code == 2
    assert "expected nothing at" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before


def test_an_export_is_replaced_on_request_and_nothing_else(run, bundle, tmp_path, capsys):
    former = tmp_path / "bundle"
    shutil.copytree(bundle, former)
    manifest = (former / "manifest.json").read_bytes()
    (former / "manifest.json").write_bytes(manifest.replace(b'"model"', b'"mod_l"'))
    ew.export(run.run.path, former, overwrite=True)
    assert (former / "manifest.json").read_bytes() == manifest
    OnnxRunner(former)
    (former / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.run.path), "--out", str(former), "--overwrite"])
    assert stop.value.code == 2
    assert "expected an export to replace, or nothing, at" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(run, tmp_path, monkeypatch, capsys, number, code):
    monkeypatch.setattr("exitwise.deploy.formats.onnx._check", lambda *_: os.kill(os.getpid(), number))
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    try:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(run.run.path), "--out", str(tmp_path / "bundle")])
    finally:
        signal.signal(signal.SIGINT, former)
    assert stop.value.code == code
    assert "train" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def write(model, policy, folder):
    from exitwise.deploy.formats.onnx import export_onnx

    shape = model.input_shape
    preprocessing = Preprocessing(shape[1], (0.5,) * shape[0], (0.5,) * shape[0])
    classes = [str(k) for k in range(model.num_classes)]
    calibration = Calibration.of(policy, count_cost(model).macs)
    export_onnx(model, calibration, folder, classes=classes, preprocessing=preprocessing)


@pytest.mark.parametrize(
    ("name", "options", "measure"),
    [
        pytest.param("ranet_small", {}, "patience", marks=pytest.mark.slow),
        pytest.param(
            "timm/resnet10t",
            {"exits": 3, "num_classes": 4, "input_shape": (3, 32, 32)},
            "entropy",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "timm/vit_tiny_patch16_224",
            {"exits": 2, "num_classes": 4, "input_shape": (3, 32, 32)},
            "margin",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_networks_and_measures(name, options, measure, tmp_path):
    model = create_model(name, **options).eval()
    images = torch.randn(40, *model.input_shape)
    logits, targets = collect_logits(model, [(images, torch.zeros(40, dtype=torch.int64))])
    reading = create_measure(measure, logits.std(axis=(0, 2)).tolist())  # new classifiers start near zero
    outputs = Outputs.from_logits(logits, targets, reading)
    policy = calibrate_proportions(outputs.confidences, [1 / model.exits] * model.exits).read_by(reading)
    write(model, policy, tmp_path / "bundle")
    keep = safe(model, policy, images)
    wanted, onnx = EarlyExitRunner(model, policy)(images), OnnxRunner(tmp_path / "bundle")
    for found in (onnx(images.numpy()), onnx.one_by_one(images.numpy())):
        assert (found.exit == wanted.exit.numpy())[keep].all()
        assert (found.prediction == wanted.prediction.numpy())[keep].all()
    assert keep.sum() > 20


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)[:, :4, :4]).real


def test_an_operator_without_an_onnx_form_is_named_and_nothing_is_left(tmp_path):
    stages = [Stage(nn.Identity(), Unknown()), Stage(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))]
    model = StagedModel(stages, 4, (3, 8, 8)).eval()
    with pytest.raises(ValueError, match=r"stage 1 cannot be exported to ONNX: operator aten.linalg_eig"):
        write(model, ExitPolicy([0.5]), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_uncalibrated_run_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.run.path, copy)
    (copy / "calibration.json").unlink()
    with pytest.raises(ValueError, match="expected a calibrated run"):
        ew.export(copy, tmp_path / "bundle")
    assert Run(copy).classes


def test_images_unlike_the_calibration_images_are_noticed(run, bundle, tmp_path, capsys):
    for seed in range(60):
        save_image(tmp_path / f"{seed}.png", size=(8, 8), mode="L", seed=seed)
    for source in (run.run.path, bundle):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(source), str(tmp_path)])
        assert stop.value.code == 0
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("exitwise: warning: the last 60 images differ from the calibration images: ")


def test_exported_programs_do_what_the_stages_do(tmp_path):
    from exitwise.deploy.formats.pt2 import export_programs

    model = create_model("ranet_small").eval()
    policy = ExitPolicy([0.2] * (model.exits - 1), create_measure("patience"))
    classes = [str(k) for k in range(model.num_classes)]
    preprocessing = Preprocessing(8, (0.5,), (0.5,))
    out = tmp_path / "programs"
    calibration = Calibration.of(policy, count_cost(model).macs)
    export_programs(model, calibration, out, classes=classes, preprocessing=preprocessing)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == "exitwise-pt2"
    assert CALIBRATION.read(out).policy == policy
    images = torch.randn(7, *model.input_shape)
    logits = torch.stack(model(images), dim=1)
    named = {"images": images}
    for k, stage in enumerate(manifest["stages"]):
        program = torch.export.load(out / stage["file"])
        outputs = program.module()(*(named[name] for name in stage["inputs"]))
        named = {name.replace("next_", "state_"): value for name, value in zip(stage["outputs"], outputs, strict=True)}
        torch.testing.assert_close(named["logits"], logits[:, k].detach())


def test_a_stage_that_cannot_be_exported_is_named_and_nothing_is_left(tmp_path):
    from exitwise.deploy.formats.pt2 import export_programs

    class Moody(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2

    model = StagedModel([Stage(nn.Identity(), nn.Sequential(Moody(), nn.Linear(192, 4)))], 4, (3, 8, 8)).eval()
    preprocessing = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="stage 1 cannot be exported: "):
        export_programs(
            model,
            Calibration.of(ExitPolicy([]), (1,)),
            tmp_path / "p",
            classes=list("abcd"),
            preprocessing=preprocessing,
        )
    assert list(tmp_path.iterdir()) == []


def nested(*fields: bytes) -> bytes:
    """A model, in it a graph, in that a tensor: a protocol buffer of these fields."""
    tensor = b"".join(fields)
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    return bytes([7 << 3 | 2, len(graph)]) + graph


def test_a_field_cannot_hide_behind_a_number_too_large():
    """The upper bits of a field's number, which another reader may drop, do not make external data something else."""
    plain, entry = bytes([13 << 3 | 2]), bytes([0])
    assert any(external_data(nested(plain, entry)))
    assert any(external_data(nested(bytes([plain[0] | 0x80, 0x80, 0x80, 0x80, 0x00]), entry)))
    with pytest.raises(BundleError, match="damaged"):
        list(external_data(nested(bytes([plain[0] | 0x80, 0x80, 0x80, 0x80, 0x10]), entry)))
