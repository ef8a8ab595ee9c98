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
import running_mean
from exitwise import EarlyExitRunner, ExitPolicy, calibrate_proportions, count_cost, create_model
from exitwise.catalogue import measures
from exitwise.cli import main
from exitwise.data import Preprocessing
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.evaluation.outputs import Outputs, collect_logits
from exitwise.exiting.measures import create_measure
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
            np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*results, strict=True)
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
for name in ("torch", "torchvision", "timm", "sklearn", "onnx", "pydantic"):
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
    assert "1 images" in result.stdout


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


def resigned(name, change):
    """Change a file and its digest in the manifest alike."""
    import hashlib

    def apply(folder):
        content = change((folder / name).read_bytes())
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        edit(lambda m: [e.update(sha256=digest) for e in [*m["stages"], m["single"]] if e["file"] == name])(folder)

    return apply


def external(content):
    import onnx

    model = onnx.load_from_string(content)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")
    return model.SerializeToString()


def unsealed(content):
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def external_in_a_branch(content):
    import onnx

    model = onnx.load_from_string(content)
    choice = next(node for node in model.graph.node if node.op_type == "If")
    branch = next(attribute.g for attribute in choice.attribute if attribute.g.initializer)
    branch.initializer[0].data_location = onnx.TensorProto.EXTERNAL
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

    from exitwise.deploy.bundle import seal

    def apply(folder):
        edit(change)(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        for file in folder.glob("*.onnx"):
            model = onnx.load(file)
            onnx.helper.set_model_props(model, seal(manifest, file.name))
            resigned(file.name, lambda _, model=model: model.SerializeToString())(folder)

    return apply


CRAFTED = {
    "stages that are a number": (edit(lambda m: m.update(stages=5)), "expected a file for each stage"),
    "no single": (edit(lambda m: m.update(single=None)), "expected a file for each stage and a single one"),
    "a stage for the single": (edit(lambda m: m.update(single=m["stages"][0])), "disagrees with the manifest: it was"),
    "no stage": (edit(lambda m: m["stages"].__setitem__(0, {})), "expected the name of a file"),
    "no shape": (edit(lambda m: m.update(input_shape=[])), "expected an input_shape"),
    "cost beyond numbers": (edit(lambda m: m["exit_macs"].__setitem__(3, 10**400)), "expected exit_macs that rise"),
    "endless reference": (resealed(lambda m: m["reference"].update(images=float("inf"))), "in the reference of"),
    "empty reference": (resealed(lambda m: m["reference"].update(shares=[])), "in the reference of"),
    "another threshold": (edit(lambda m: m["thresholds"].__setitem__(0, 0.123)), "disagrees with the manifest"),
    "another measure": (edit(lambda m: m.update(measure="entropy")), "disagrees with the manifest"),
    "temperatures": (edit(lambda m: m.update(temperatures=[2, 2, 2, 2])), "disagrees with the manifest"),
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
    "external data": (resigned("stage_0.onnx", external), "keeps data in other files"),
    "external data in a branch": (resigned("single.onnx", external_in_a_branch), "keeps data in other files"),
    "stages swapped": (edit(lambda m: m["stages"].reverse()), "disagrees with|cannot"),
    "wrong names": (edit(lambda m: m["stages"][0].update(outputs=["confidence"])), "disagrees with the manifest"),
    "threshold of text": (edit(lambda m: m.update(thresholds=["a", None, None])), "expected thresholds as numbers"),
    "threshold that is infinite": (edit(lambda m: m.update(thresholds=[1e999, None, None])), "expected thresholds"),
    "too few thresholds": (edit(lambda m: m.update(thresholds=[0.5])), "expected 3 thresholds for 4 stages"),
    "another version": (edit(lambda m: m.update(version=99)), "expected a bundle of version 1"),
    "another format": (edit(lambda m: m.update(format="zip")), "expected a manifest of format exitwise-onnx"),
    "no classes": (edit(lambda m: m.pop("classes")), "expected classes in"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "expected JSON at"),
    "nested without end": (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "expected JSON at"),
    "size of another network": (edit(lambda m: m.update(input_shape=[1, 9, 9])), "expected an input_shape"),
    "size throughout": (
        resealed(lambda m: [m.update(input_shape=[1, 9, 9]), m["preprocessing"].update(image_size=9, shorter_side=9)]),
        "disagrees with the manifest: it takes images",
    ),
    "huge images": (edit(lambda m: m["preprocessing"].update(shorter_side=10**9)), "expected a shorter_side"),
    "no preprocessing": (edit(lambda m: m.update(preprocessing=None)), "expected an input_shape and its preprocessing"),
    "mean that is no number": (edit(lambda m: m["preprocessing"].update(mean=[float("nan")])), "expected mean as a"),
    "std of zero": (edit(lambda m: m["preprocessing"].update(std=[0])), "expected std as a number per channel"),
    "interpolation": (edit(lambda m: m["preprocessing"].update(interpolation="magic")), "expected an interpolation"),
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
    export_onnx(model, policy, folder, classes=classes, preprocessing=preprocessing, exit_macs=count_cost(model).macs)


@pytest.mark.parametrize(
    ("name", "options", "measure"),
    [
        ("ranet_small", {}, "patience"),
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


@pytest.mark.parametrize("measure", ["max-probability", "patience", "running-mean"])
def test_exported_programs_do_what_the_stages_do(measure, tmp_path, monkeypatch):
    from exitwise.deploy.formats.pt2 import export_programs

    monkeypatch.setitem(measures.MEASURES, running_mean.ENTRY.name, running_mean.ENTRY)
    model = create_model("ranet_small").eval()
    policy = ExitPolicy([0.2] * (model.exits - 1), create_measure(measure))
    classes = [str(k) for k in range(model.num_classes)]
    preprocessing = Preprocessing(8, (0.5,), (0.5,))
    out = tmp_path / "programs"
    export_programs(model, policy, out, classes=classes, preprocessing=preprocessing, exit_macs=count_cost(model).macs)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == "exitwise-pt2"
    images = torch.randn(7, *model.input_shape)
    logits = torch.stack(model(images), dim=1)
    wanted, predictions = policy.measure.read_all(logits)
    named = {"state_0": images}
    for k, stage in enumerate(manifest["stages"]):
        program = torch.export.load(out / stage["file"])
        outputs = program.module()(*(named[name] for name in stage["inputs"]))
        named = {name.replace("next_", "state_"): value for name, value in zip(stage["outputs"], outputs, strict=True)}
        torch.testing.assert_close(named["confidence"], wanted[:, k].detach())
        assert (named["prediction"] == predictions[:, k]).all()
        named |= {f"before_{name}": value for name, value in named.items()}


def test_a_stage_that_cannot_be_exported_is_named_and_nothing_is_left(tmp_path):
    from exitwise.deploy.formats.pt2 import export_programs

    class Moody(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2

    model = StagedModel([Stage(nn.Identity(), nn.Sequential(Moody(), nn.Linear(192, 4)))], 4, (3, 8, 8)).eval()
    preprocessing = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="stage 1 cannot be exported: "):
        export_programs(
            model, ExitPolicy([]), tmp_path / "p", classes=list("abcd"), preprocessing=preprocessing, exit_macs=(1,)
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
