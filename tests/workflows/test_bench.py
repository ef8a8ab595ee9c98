"""The comparison on this machine: what is compared, what the verdict follows from, and what is refused."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.benching.networks import out_of_reach
from exitwise.benching.timing import measure_exit_seconds
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.evaluation.collect import collect
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.outputs import anytime, operate
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.rule import leaving_at
from exitwise.exiting.table import Budgeted
from exitwise.models import count_cost, create_model
from exitwise.models.staged import Stage, StagedModel
from exitwise.runs.records.bench import BENCH, Network, Row
from exitwise.workflows.bench import bench


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """The run as it was trained: other tests calibrate it."""
    folder = shutil.copytree(digits_run.run.path, tmp_path_factory.mktemp("runs") / "run")
    (folder / "calibration.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def result(run):
    return bench(run, forms="eager", batch_sizes=[1, 8], beside=["msdnet_small"], seconds=1)


def test_every_network_is_timed_in_every_form_and_size(result):
    assert result.left_out == {}
    names = {(row.form, row.batch_size): [] for row in result.rows}
    for row in result.rows:
        names[row.form, row.batch_size].append(row.network.name)
        assert 0 < row.p50 <= row.p95 <= row.p99
        assert row.images_per_second == pytest.approx(row.batch_size / row.mean)
        assert (row.saved is None) == (row.network.kind == "full")
    early = [f"early exits, {budget} %" for budget in (30, 50, 70)]
    counts = [early[1], early[0], early[2]]
    static = [f"exit {k} alone" for k in (1, 2, 3)]
    for size in (1, 8):
        assert names["eager", size] == ["full network", *counts, *static, "msdnet_small"]
    assert set(result.verdicts) == {1, 8}


def test_budgets_out_of_reach_are_named():
    table = [Budgeted(budget, (0.5,), 0.9, 1.0) for budget in (0.2, 0.5, 1.0)]
    assert out_of_reach(table, [0.5, 0.1, 1.2, 0.05]) == {
        "budget 5 %": "below the first exit's 20 %",
        "budget 10 %": "below the first exit's 20 %",
        "budget 120 %": "above the last exit's 100 %",
    }


def test_accuracies_are_of_test_images_at_thresholds_of_calibration_images(result, digits_run):
    model, splits = digits_run.run.model(), digits_run.splits
    calibration, test = (collect(model, split, "cpu") for split in (splits.calibration, splits.test))
    costs = count_cost(model).macs
    policy, _ = calibrate_macs(calibration.confidences, costs, 0.5 * costs[-1])
    networks = {row.network.name: row for row in result.rows}
    point = operate(test, policy, costs)
    early = networks["early exits, 50 %"]
    assert (early.accuracy, early.macs) == pytest.approx((point.accuracy, point.macs))
    full = networks["full network"]
    assert full.accuracy == anytime(test)[-1]
    assert early.macs < full.macs < costs[-1]
    assert [networks[f"exit {k} alone"].accuracy for k in (1, 2, 3)] == anytime(test)[:-1]
    assert networks["msdnet_small"].accuracy is None


def test_it_is_recorded(result, run):
    content = json.loads((run / "bench.json").read_text())
    assert len(content["rows"]) == len(result.rows)
    assert content["verdicts"] == {str(size): text for size, text in result.verdicts.items()}
    assert content["machine"]["torch"]


def test_a_network_is_timed_as_it_was_calibrated(digits_run):
    model, splits = digits_run.run.model(), digits_run.splits
    calibration = ew.calibrate(model, splits.calibration.batches(64), budget=0.6, measure="margin")
    result = bench(model, calibration, splits.test.batches(50), forms="eager", batch_sizes=[1], seconds=0.3)
    networks = [row.network for row in result.rows]
    rows = {row.network.name: row for row in result.rows}
    early = ["early exits, as calibrated", *(f"early exits, {share} %" for share in (30, 50, 70))]
    assert [network.name for network in networks if network.kind == "early"] == early
    evaluated = ew.evaluate(model, calibration, splits.test.batches(50))
    calibrated = rows["early exits, as calibrated"]
    assert (calibrated.accuracy, calibrated.macs) == evaluated.calibrated[:2]
    assert rows["full network"].accuracy == evaluated.anytime[-1]
    assert result.verdicts[1].split(": ")[1].startswith("early exits, as calibrated (eager)")


def test_what_is_timed_next_is_told(run, capsys):
    options = {"forms": "eager", "batch_sizes": [1, 8], "budgets": [0.5], "seconds": 0.1}
    bench(run, **options)
    output, told = capsys.readouterr()
    assert (output, told) == ("", "eager, batch 1 ...\neager, batch 8 ...\n")
    bench(run, **options, tell=lambda message: None)
    assert capsys.readouterr().err == ""


def test_calls_that_mix_runs_and_networks_are_refused(digits_run):
    model = digits_run.run.model()
    with pytest.raises(UserError, match=r"a network is timed by bench\(network, calibration, test\); got other"):
        bench(model)
    with pytest.raises(UserError, match="a run has a calibration and test samples of its own; got others too"):
        bench(digits_run.run.path, test=[])
    calibration = ew.calibrate(model, digits_run.splits.calibration.batches(64), budget=0.6)
    with pytest.raises(UserError, match="expected the calibration of this network; got that of one with other costs"):
        bench(create_model("msdnet_small", num_classes=4), calibration, [], seconds=0.1)


WIDE = 128
"""Features of the stand-ins, so many that weights are most of their graphs."""


class OneExit(nn.Module):
    """A classifier that is wrong on a part of the samples, unsure on a third, and has so many layers."""

    def __init__(self, wrong, layers):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDE, WIDE) for _ in range(layers)))
        self.wrong = wrong

    def forward(self, x):
        logits = torch.where(x[:, 4:5] < 1 / 3, 2.0, 8.0) * x[:, :4] + 1e-6 * self.layers(x)[:, :4]
        flipped = x[:, 4:5] < self.wrong
        return torch.where(flipped, logits.roll(1, dims=1), logits)


@pytest.fixture(scope="module")
def samples():
    """Batches whose class is the largest of four numbers; a fifth, even from 0 to 1, says who is right on it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, WIDE, generator=generator)
    targets = torch.randint(4, (200,), generator=generator)
    x[:, :4] = torch.eye(4)[targets]
    x[:, 4] = (torch.randperm(200, generator=generator) + 0.5) / 200
    return [(x[part], targets[part]) for part in torch.arange(200).split(50)]


def stand_in(wrong_early, wrong_late, deep):
    first = Stage(nn.Identity(), OneExit(wrong_early, 1))
    return StagedModel([first, Stage(nn.Identity(), OneExit(wrong_late, deep))], 4, (WIDE,)).eval()


class Clock:
    """Time that passes with the layers that ran, give or take some at random."""

    def __init__(self, monkeypatch, noise):
        self.now, self.noise, self.generator = 0.0, noise, np.random.default_rng(0)
        for module in ("benching.forms", "kernels.timing"):
            monkeypatch.setattr(f"exitwise.{module}.time", SimpleNamespace(perf_counter=lambda: self.now))
        forward = OneExit.forward

        def timed(network, x):
            self.now += len(network.layers) * self.generator.uniform(1 - noise, 1 + noise)
            return forward(network, x)

        monkeypatch.setattr(OneExit, "forward", timed)


def static(wrong, layers):
    return StagedModel([Stage(nn.Identity(), OneExit(wrong, layers))], 4, (WIDE,)).eval()


SMALLER = static(0.02, 6)


@pytest.mark.parametrize(
    ("noise", "rivals", "says"),
    [
        (0, {}, r"worth it: .* \(eager\): \d.\d\dx \(± 0.\d\d\) as fast as the full network \(eager\), "),
        (0, {"smaller": SMALLER}, "not worth it: .*; smaller .* as fast again"),
        (0, {"smaller": static(0.5, 1)}, "worth it"),
        (0.9, {"smaller": SMALLER}, "undecided: .*x .* as fast as smaller .*: times are too uncertain to tell"),
    ],
)
def test_stand_ins_of_known_cost_and_accuracy(samples, noise, rivals, says, monkeypatch):
    model = stand_in(0.3, 0.02, 30)
    calibration = ew.calibrate(model, samples[:2], budget=0.5)
    Clock(monkeypatch, noise)
    batches = 4 if noise else 80
    options = {"forms": "eager", "batch_sizes": [1], "budgets": [], "seconds": 3 * 50 * batches}
    result = bench(model, calibration, samples, beside=rivals, **options)
    assert re.match(says, result.verdicts[1]), result
    assert result.doubts == []
    by_name = {each.network.name: each for each in result.rows}
    assert by_name["full network"].accuracy == 0.98
    assert by_name["early exits, as calibrated"].accuracy > 0.97
    assert by_name["exit 1 alone"].accuracy == 0.7
    assert by_name["exit 1 alone"].gap == pytest.approx((-0.28, 1.96 * (0.28 - 0.28**2) ** 0.5 / 200**0.5), rel=0.03)
    assert by_name["exit 1 alone"].saved.mean == pytest.approx(1 - 1 / 30, abs=0.05)
    assert by_name["full network"].saved is None
    for name, rival in rivals.items():
        (stage,) = rival.stages
        assert by_name[name].accuracy == 1 - stage.head.wrong
        assert by_name[name].weights == 4 * len(stage.head.layers) * (WIDE * WIDE + WIDE)


@pytest.fixture(scope="module")
def exported(samples, tmp_path_factory):
    """A network, beside it its bundle and another with exits, as graphs in float32 and eight bits."""
    pytest.importorskip("onnxruntime")
    model, other = stand_in(0.3, 0.02, 3), stand_in(0.2, 0.05, 2)
    held_out = samples[:2]
    calibration, its = (ew.calibrate(each, held_out, budget=0.6) for each in (model, other))
    bundle = tmp_path_factory.mktemp("bundles") / "my.bundle"
    ew.export(model, calibration, bundle)
    beside = {"bundle": bundle, "other": (other, its)}
    kinds = {"forms": ["onnx", "int8"], "batch_sizes": [8], "seconds": 0.5}
    result = bench(model, calibration, samples, held_out=held_out, beside=beside, **kinds)
    assert [link.after for link in result.links] == [1]
    assert "split after exit 1: going on takes" in str(result)
    return bundle, {form: {r.network.name: r for r in result.rows if r.form == form} for form in kinds["forms"]}


@pytest.mark.slow
def test_eight_bits_have_their_own_accuracy_and_thresholds(exported):
    _, rows = exported
    assert set(rows["onnx"]) - set(rows["int8"]) == {"bundle"}
    assert {"full network", "exit 1 alone", "early exits, 50 %"} <= set(rows["int8"])
    full, eight = (rows[form]["full network"] for form in rows)
    assert full.gap == (0, 0)
    assert abs(eight.accuracy - full.accuracy) < 0.1
    assert eight.gap.mean == pytest.approx(eight.accuracy - full.accuracy)
    assert eight.weights < 0.5 * full.weights
    costs = count_cost(stand_in(0.3, 0.02, 3)).macs
    assert rows["int8"]["early exits, as calibrated"].macs / costs[-1] == pytest.approx(0.6, abs=0.2)


def test_bundles_and_networks_stand_beside_on_the_same_samples(exported):
    _, rows = exported
    ours, bundle = rows["onnx"]["early exits, as calibrated"], rows["onnx"]["bundle"]
    assert bundle.network.kind == "early"
    assert (bundle.accuracy, bundle.macs) == (ours.accuracy, ours.macs)
    assert rows["onnx"]["other"].accuracy == 0.95
    assert rows["onnx"]["other, as calibrated"].network.kind == "early"


def test_runs_stand_beside_on_the_same_images(run, tmp_path, monkeypatch):
    ours, again = (shutil.copytree(run, tmp_path / name) for name in ("ours", "again"))
    for each in (ours, again):
        ew.calibrate(each, budget=0.6)
    kinds = {"forms": "eager", "batch_sizes": [1], "seconds": 0.2}
    rows = {row.network.name: row for row in bench(ours, beside=again, **kinds).rows}
    calibrated, theirs = rows["early exits, as calibrated"], rows[f"{again}, as calibrated"]
    assert (calibrated.accuracy, calibrated.macs) == (theirs.accuracy, theirs.macs)
    assert rows[str(again)].accuracy == rows["full network"].accuracy

    def with_others(each):
        found = splits(each)
        return found._replace(test=found.test.share(0, 2)) if each.path.name == "again" else found

    splits = ew.Run.splits
    monkeypatch.setattr(ew.Run, "splits", with_others)
    with pytest.raises(UserError, match="expected a run with the test images of this one at"):
        bench(ours, beside=again, **kinds)


def test_what_cannot_stand_beside_is_refused(run, exported):
    bundle, _ = exported
    with pytest.raises(UserError, match=r"expected the classes of this run, .*; got 4 others"):
        bench(run, beside=bundle, forms="onnx", seconds=0.1)
    with pytest.raises(UserError, match="beside a run stand other runs, bundles, or models by name; got networks"):
        bench(run, beside={"other": digits_network()}, forms="eager", seconds=0.1)


def test_networks_with_other_classes_are_refused(samples, exported):
    model = stand_in(0.03, 0.02, 2)
    calibration = ew.calibrate(model, samples[:2], budget=0.7)
    with pytest.raises(UserError, match="expected 4 classes of wider; got 5"):
        bench(model, calibration, samples, beside={"wider": nn.Linear(WIDE, 5)}, forms="eager", seconds=0.1)
    with pytest.raises(UserError, match=r"expected networks beside this one by name, such as .*; got a list"):
        bench(model, calibration, samples, beside=[model], forms="eager", seconds=0.1)
    with pytest.raises(UserError, match="expected a network, a network and its calibration, or a bundle for it; got 3"):
        bench(model, calibration, samples, beside={"it": 3}, forms="eager", seconds=0.1)
    with pytest.raises(UserError, match="a bundle is timed in the form onnx; got eager"):
        bench(model, calibration, samples, beside={"bundle": exported[0]}, forms="eager", seconds=0.1)
    with pytest.raises(UserError, match="eight bits need the held-out samples"):
        bench(model, calibration, samples, forms="int8", seconds=0.1)
    with pytest.raises(UserError, match=r"expected a whole number as a batch size, at least 1; got 2\.5"):
        bench(model, calibration, samples, forms="eager", batch_sizes=[2.5], seconds=0.1)


def digits_network():
    return create_model("msdnet_small", num_classes=10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--forms", "tpu"], "expected forms among eager, compiled, onnx, int8; got tpu"),
        (["--batch-sizes", "0"], "expected a batch size of at least 1; got 0"),
        (["--batch-sizes", "1.7"], "expected whole numbers for batch sizes; got 1.7"),
        (["--batch-sizes", "many"], "expected numbers for batch sizes"),
        (["--budgets", "0.001"], "expected a budget from 0."),
        (["--seconds", "-1"], "expected a positive number of seconds; got -1"),
        (["--beside", "resnet_of_mine"], "resnet_of_mine"),
        (["--beside", "{folder}"], "expected a run folder with config.yaml, a bundle, or a model's name; got"),
    ],
)
def test_bad_input_is_refused_in_a_line(run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(run), *(flag.format(folder=tmp_path) for flag in flags)])
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_measured_latencies_grow_with_depth():
    model = create_model("msdnet_small").eval()
    seconds = measure_exit_seconds(model, rounds=9)
    assert len(seconds) == 4
    assert seconds[0] < seconds[3]
    assert ExitPolicy(leaving_at(1, 4)).exit_of(np.ones((1, 4))).tolist() == [1]


def test_times_of_an_earlier_version_are_read(tmp_path):
    network = {"name": "full network", "kind": "full", "accuracy": 0.5, "macs": 100.0}
    row = {"network": network, "form": "eager", "batch_size": 8, "mean": 0.1, "p50": 0.1, "p95": 0.2, "p99": 0.3}
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [row], "verdicts": {"8": "worth it"}, "left_out": {}}))
    (read,) = BENCH.read(tmp_path).rows
    assert read == Row(Network("full network", "full"), "eager", 8, 0.1, 0.1, 0.2, 0.3, 0.5, 100.0)
