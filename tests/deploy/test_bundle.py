"""Bundles of version 2: several inputs, a calibration of its own, weights once, links of a hub's cache."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise import ExitPolicy, OnnxRunner
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import Calibration
from exitwise.errors import DataError
from exitwise.exiting.measures import create_measure
from exitwise.exiting.table import budget_table
from exitwise.models.staged import Stage, StagedModel
from exitwise.storage.protobuf import BundleError, external_data

pytest.importorskip("onnx")

from exitwise.deploy.bundle import read_bundle, write_sealed
from exitwise.deploy.formats import onnx_single
from exitwise.deploy.formats.onnx import export_onnx

CLASSES = list("abcd")


class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)

    def forward(self, state):
        return {"x": self.table(state["ids"]), "mask": state["mask"]}


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, state):
        return {"x": self.linear(state["x"]).relu(), "mask": state["mask"]}


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(16, len(CLASSES))

    def forward(self, state):
        mask = state["mask"][:, :, None].float()
        return self.classify((state["x"] * mask).sum(1) / mask.sum(1))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A network of token ids and masks, its bundle, and texts of mixed lengths."""
    torch.manual_seed(0)
    example = {"ids": torch.arange(2, 18).reshape(2, 8), "mask": torch.ones(2, 8, dtype=torch.int64)}
    stages = [Stage(Embed(), Pool()), Stage(Mix(), Pool()), Stage(Mix(), Pool())]
    model = StagedModel(stages, 4, example=example).eval()
    policy = ExitPolicy([0.33, 0.33], create_measure("max-probability", [0.5, 0.5, 0.5]))
    folder = tmp_path_factory.mktemp("bundles") / "texts"
    export_onnx(model, Calibration.of(policy, (1, 2, 3)), folder, classes=CLASSES, preprocessing=None)
    mask = (torch.arange(13) < torch.randint(1, 14, (40, 1))).long()
    return model, policy, folder, {"ids": torch.randint(20, (40, 13)), "mask": mask}


def test_several_inputs_of_any_length(texts):
    model, policy, folder, inputs = texts
    runner = OnnxRunner(folder)
    assert [(each.name, each.type, each.shape) for each in runner.inputs] == [
        ("ids", "int64", ("batch", "tokens")),
        ("mask", "int64", ("batch", "tokens")),
    ]
    wanted = ew.EarlyExitRunner(model, policy, (1, 2, 3))(inputs)
    assert len(set(wanted.exit.tolist())) == 3
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    for found in (runner(arrays), runner.one_by_one(arrays)):
        np.testing.assert_array_equal(found.exit, wanted.exit)
        np.testing.assert_array_equal(found.prediction, wanted.prediction)
        np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-5)
    logits = torch.stack(model(inputs), 1).detach().numpy()
    np.testing.assert_allclose(runner.logits(arrays), logits, atol=1e-5)
    taken = torch.from_numpy(logits[np.arange(40), wanted.exit] / 0.5)
    probabilities, classes = taken.softmax(-1).topk(3)
    for found in (runner(arrays), runner.one_by_one(arrays)):
        top = found.top(3)
        np.testing.assert_array_equal(top[0], classes)
        np.testing.assert_allclose(top[1], probabilities, atol=1e-5)
        with pytest.raises(ValueError, match="expected 1 to 4 classes; got 5"):
            found.top(5)


IDS = np.ones((2, 5), np.int64)
WRONG = {
    "one of two": ({"ids": IDS}, "expected inputs ids, mask; got ids"),
    "an array": (IDS, "expected inputs ids, mask; got ids"),
    "another type": (
        {"ids": IDS, "mask": IDS.astype(np.float32)},
        r"expected int64 mask \(2, 5\); got float32 \(2, 5\)",
    ),
    "another length": ({"ids": IDS, "mask": IDS[:, :4]}, r"expected int64 mask \(2, 5\); got int64 \(2, 4\)"),
    "other rows": ({"ids": IDS, "mask": IDS[:1]}, r"expected int64 mask \(2, 5\); got int64 \(1, 5\)"),
    "no rows": ({"ids": IDS[:0], "mask": IDS[:0]}, "expected at least one sample of ids, mask; got none"),
    "a list": ({"ids": IDS, "mask": [1]}, r"expected int64 mask \(2, 5\); got list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_inputs_are_refused(texts, name):
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        OnnxRunner(texts[2])(given)


def test_image_files_are_not_for_a_network_of_tensors(texts, tmp_path):
    with pytest.raises(ValueError, match="expected an input that is made of image files; ids is given as a tensor"):
        OnnxRunner(texts[2]).read(tmp_path / "x.png")


class Twice(nn.Module):
    """The same large weight in two stages."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x).tanh()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    torch.manual_seed(1)
    shared = nn.Linear(64, 64)
    stages = [Stage(Twice(shared), nn.Linear(64, 4)), Stage(Twice(shared), nn.Linear(64, 4))]
    model = StagedModel(stages, 4, (64,)).eval()
    folder = tmp_path_factory.mktemp("bundles") / "vectors"
    inputs = torch.randn(200, 64)
    logits = torch.stack(model(inputs), 1).detach().numpy()
    targets = torch.randint(4, (200,)).numpy()
    confidences, predictions = create_measure().read_all(logits)
    table = budget_table(confidences, predictions == targets[:, None], (3, 6))
    calibration = Calibration(ExitPolicy(table[5].thresholds), {}, (), (3, 6), {}, "", table=table)
    export_onnx(model, calibration, folder, classes=CLASSES, preprocessing=None)
    return model, calibration, folder, inputs.numpy()


def test_a_weight_is_stored_once(vectors):
    folder = vectors[2]
    matrix = vectors[0].stages[0].body.linear.weight.detach().numpy().T
    stored = b"".join(file.read_bytes() for file in folder.iterdir())
    assert stored.count(np.ascontiguousarray(matrix).tobytes()) + stored.count(matrix.T.tobytes()) == 1
    names = {each.location for each in external_data((folder / "single.onnx").read_bytes())}
    assert names == {"stage_0.data", "stage_1.data"}
    assert (folder / "stage_1.data").stat().st_size == 64 * 4 * 4
    assert all((folder / f"{name}.onnx").stat().st_size < 14_000 for name in ("stage_0", "stage_1", "single"))


def test_weights_lie_in_the_branch_that_needs_them(vectors, monkeypatch, tmp_path):
    model, calibration, folder, inputs = vectors
    single = read_bundle(folder).single
    assert [{name.split("/")[0] for name in names} for names in (single.weights, single.inner)] == [{"s0"}, {"s1"}]
    monkeypatch.setattr(onnx_single, "LARGEST", 100)
    export_onnx(model, calibration, tmp_path / "bundle", classes=CLASSES, preprocessing=None)
    outside = read_bundle(tmp_path / "bundle").single
    assert (list(outside.weights), outside.inner) == ([*single.weights, *single.inner], {})
    wanted, found = OnnxRunner(folder).one_by_one(inputs), OnnxRunner(tmp_path / "bundle").one_by_one(inputs)
    np.testing.assert_array_equal(wanted.exit, found.exit)
    np.testing.assert_allclose(wanted.logits, found.logits, atol=1e-6)


def test_a_budget_picks_thresholds_from_the_table(vectors):
    _, calibration, folder, inputs = vectors
    shares = []
    for line in calibration.table:
        runner = OnnxRunner(folder, budget=line.budget)
        assert runner.thresholds == line.thresholds == runner.thresholds_for(line.budget + 0.01 * (line.budget < 1))
        cost = runner(inputs).macs.mean()
        assert cost == pytest.approx(line.macs, abs=0.05)  # rounding may take a sample or two over a threshold
        assert line.macs <= line.budget * 6 + 1e-9
        shares.append(cost / 6)
    assert (shares[0], shares[-1]) == (0.5, 1)
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert OnnxRunner(folder).thresholds == calibration.policy.thresholds
    for wrong in (0.4, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected a budget from 0\.5, the first exit's, to 1; got"):
            OnnxRunner(folder, budget=wrong)


def test_thresholds_are_an_input_of_the_single_graph(vectors):
    _, _, folder, inputs = vectors
    runner = OnnxRunner(folder)
    for thresholds in ([None], [0.0], [float(np.median(runner(inputs).confidence))]):
        runner.thresholds = thresholds
        wanted, found = runner.by_stages(inputs), runner.one_by_one(inputs)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_calibration_is_made_anew_without_touching_a_graph(vectors, tmp_path):
    model, _, former, inputs = vectors
    folder = shutil.copytree(former, tmp_path / "bundle")
    policy = ExitPolicy([0.2], create_measure("entropy", [0.5, 2.0]))
    write_sealed(folder, json.loads((folder / "manifest.json").read_text()), Calibration.of(policy, (3, 6)))
    runner = OnnxRunner(folder)
    assert not runner.has_single
    wanted = ew.EarlyExitRunner(model, policy, (3, 6))(torch.from_numpy(inputs))
    np.testing.assert_array_equal(runner(inputs).exit, wanted.exit)
    np.testing.assert_array_equal(runner(inputs[:1]).exit, wanted.exit[:1])
    with pytest.raises(ValueError, match="has no graph for single samples with this measure"):
        runner.one_by_one(inputs)
    with pytest.raises(ValueError, match="this one has none: calibrate again"):
        OnnxRunner(folder, budget=0.7)


def test_what_is_not_sure_is_not_answered_in_any_form(vectors, tmp_path):
    model, calibration, former, inputs = vectors
    folder = shutil.copytree(former, tmp_path / "bundle")
    middle = float(np.median(OnnxRunner(folder)(inputs).confidence))
    policy = calibration.policy.abstaining(middle)
    write_sealed(folder, json.loads((folder / "manifest.json").read_text()), replace(calibration, policy=policy))
    runner = OnnxRunner(folder)
    eager = ew.EarlyExitRunner(model, policy, (3, 6))(torch.from_numpy(inputs))
    near = np.abs(eager.confidence.numpy() - middle) < 1e-5
    assert 90 <= eager.answered.sum() <= 110
    for found in (runner.by_stages(inputs), runner.one_by_one(inputs)):
        np.testing.assert_array_equal(found.answered[~near], eager.answered.numpy()[~near])
    assert OnnxRunner(former)(inputs).answered.all()


def test_links_of_a_hub_are_followed_in_its_store_and_nowhere_else(vectors, tmp_path):
    store = tmp_path / "models--me--vectors"
    for place in ("blobs", "snapshots/abc/sub"):
        (store / place).mkdir(parents=True)
    folder = store / "snapshots/abc/sub"
    for number, file in enumerate(sorted(vectors[2].iterdir())):
        shutil.copy(file, store / f"blobs/{number}")
        (folder / file.name).symlink_to(f"../../../blobs/{number}")
    assert OnnxRunner(folder)(vectors[3]).prediction.shape == (200,)
    assert OnnxRunner(folder).one_by_one(vectors[3][:2]).prediction.shape == (2,)
    secret = tmp_path / "blobs"
    secret.mkdir()
    for name in ("manifest.json", "stage_0.onnx", "stage_0.data", "calibration.json"):
        link = folder / name
        inside = link.readlink()
        shutil.copy(link, secret / "copy")
        link.unlink()
        link.symlink_to(secret / "copy")
        with pytest.raises(BundleError, match="found a link"):
            OnnxRunner(folder)
        link.unlink()
        link.symlink_to(link.name)
        with pytest.raises(BundleError, match="found a link"):
            OnnxRunner(folder)
        link.unlink()
        link.symlink_to(inside)
    OnnxRunner(folder)


class Moody(type(create_measure())):
    """A measure that no graph can express."""

    def read(self, logits, exit, state=None):
        return super().read(logits if logits.max() > 0 else -logits, exit, state)


def test_a_measure_without_a_graph_leaves_the_single_one_out(vectors, tmp_path):
    model, _, _, inputs = vectors
    calibration = Calibration.of(ExitPolicy([0.3], Moody()), (3, 6))
    export_onnx(model, calibration, tmp_path / "bundle", classes=CLASSES, preprocessing=None)
    assert read_bundle(tmp_path / "bundle").single is None
    assert OnnxRunner(tmp_path / "bundle")(inputs[:1]).prediction.shape == (1,)


def test_one_exit_is_one_graph(tmp_path):
    model = StagedModel([Stage(nn.Identity(), nn.Linear(64, 4))], 4, (64,)).eval()
    out = tmp_path / "bundle"
    export_onnx(model, Calibration.of(ExitPolicy([]), (6,)), out, classes=CLASSES, preprocessing=None)
    assert sorted(file.name for file in out.iterdir()) == [
        "calibration.json",
        "manifest.json",
        "stage_0.data",
        "stage_0.onnx",
    ]
    inputs = torch.randn(5, 64)
    np.testing.assert_array_equal(OnnxRunner(out)(inputs.numpy()).prediction, model.forward_last(inputs).argmax(1))


def test_an_image_is_read_for_each_input_by_its_own_preprocessing(tmp_path):
    from exitwise.deploy.inputs import read_input
    from exitwise.deploy.manifest import Input
    from exitwise.deploy.stages import image_wish
    from images import save_image

    save_image(tmp_path / "x.png", size=(40, 30))
    for size in (8, 16):
        wish = image_wish(Preprocessing(size, (0.5,) * 3, (0.5,) * 3))
        assert read_input(Input("x", "float32", ("batch", 3, size, size), wish), tmp_path / "x.png").shape == (
            3,
            size,
            size,
        )


def test_samples_without_a_finite_answer_are_named(flowers_bundle):
    images = np.zeros((3, 1, 8, 8), np.float32)
    images[1] = np.nan
    with pytest.raises(DataError, match=r"expected finite numbers in .*; sample 2 of 3 has others"):
        OnnxRunner(flowers_bundle, 1)(images)
