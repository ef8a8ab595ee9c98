"""The comparison on this machine: what is compared, what the verdict follows from, and what is refused."""

import json
import shutil

import numpy as np
import pytest

import exitwise as ew
from exitwise.benching.timing import ALWAYS, NEVER, measure_exit_seconds
from exitwise.benching.verdict import verdict
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.evaluation.collect import collect
from exitwise.evaluation.outputs import anytime, operate
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.policy import ExitPolicy
from exitwise.models import count_cost, create_model
from exitwise.runs.records.bench import Network, Row
from exitwise.workflows.bench import bench


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """The run as it was trained: other tests calibrate it."""
    folder = shutil.copytree(digits_run.run.path, tmp_path_factory.mktemp("runs") / "run")
    (folder / "calibration.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def result(run):
    pytest.importorskip("onnxruntime")
    return bench(run, forms=["eager", "onnx"], batch_sizes=[1, 8], static=["msdnet_small"], seconds=1)


def test_every_network_is_timed_in_every_form_and_size(result):
    assert result.left_out == {}
    names = {(row.form, row.batch_size): [] for row in result.rows}
    for row in result.rows:
        names[row.form, row.batch_size].append(row.network.name)
        assert 0 < row.p50 <= row.p95 <= row.p99
        assert row.images_per_second == pytest.approx(row.batch_size / row.mean)
        assert result.full(row).network.kind == "full"
    early = [f"early exits, {budget} %" for budget in (30, 50, 70)]
    counts = [early[1], early[0], early[2]]
    static = [f"exit {k} alone" for k in (1, 2, 3)]
    for size in (1, 8):
        assert names["eager", size] == ["without exits", *counts, *static, "msdnet_small"]
        assert names["onnx", size] == ["without exits", *counts, *static]
    assert set(result.verdicts) == {1, 8}


def test_accuracies_are_of_test_images_at_thresholds_of_calibration_images(result, digits_run):
    model, splits = digits_run.run.model(), digits_run.splits
    calibration, test = (collect(model, split, "cpu") for split in (splits.calibration, splits.test))
    costs = count_cost(model).macs
    policy, _ = calibrate_macs(calibration.confidences, costs, 0.5 * costs[-1])
    networks = {row.network.name: row.network for row in result.rows}
    point = operate(test, policy, costs)
    early = networks["early exits, 50 %"]
    assert (early.accuracy, early.macs) == pytest.approx((point.accuracy, point.macs))
    full = networks["without exits"]
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
    early = ["early exits, as calibrated", *(f"early exits, {share} %" for share in (30, 50, 70))]
    assert [network.name for network in networks if network.kind == "early"] == early
    evaluated = ew.evaluate(model, calibration, splits.test.batches(50))
    assert (networks[1].accuracy, networks[1].macs) == evaluated.calibrated[:2]
    assert networks[0].accuracy == evaluated.anytime[-1]
    assert result.verdicts[1].split(": ")[1].startswith("early exits, as calibrated (eager)")


def test_what_is_timed_next_is_told(digits_run, capsys):
    options = {"forms": "eager", "batch_sizes": [1, 8], "budgets": [0.5], "seconds": 0.1}
    bench(digits_run.run, **options)
    output, told = capsys.readouterr()
    assert (output, told) == ("", "eager, batch 1 ...\neager, batch 8 ...\n")
    bench(digits_run.run, **options, tell=lambda message: None)
    assert capsys.readouterr().err == ""


def test_calls_that_mix_runs_and_networks_are_refused(digits_run):
    model = digits_run.run.model()
    with pytest.raises(UserError, match=r"a network is timed by bench\(network, calibration, test\); got other"):
        bench(model)
    with pytest.raises(UserError, match="a run has a calibration and test images of its own; got others too"):
        bench(digits_run.run.path, test=[])
    calibration = ew.calibrate(model, digits_run.splits.calibration.batches(64), budget=0.6)
    with pytest.raises(UserError, match="expected the calibration of this network; got that of one with other costs"):
        bench(create_model("msdnet_small", num_classes=4), calibration, [], seconds=0.1)


def row(kind, mean, accuracy=0.9, macs=100.0, form="eager"):
    return Row(Network(kind, kind, accuracy, macs), form, 1, mean, mean, mean, mean)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("full", 4), row("early", 2, 0.89, 50)], "worth it: early (eager): 2.00x as fast"),
        ([row("full", 4), row("early", 3.92, 0.9, 50)], "50 % fewer MACs and 2 % less time: exits"),
        (
            [row("full", 4), row("early", 2, 0.89, 95)],
            "5 % fewer MACs and 50 % less time: too few images leave early",
        ),
        ([row("full", 4), row("early", 2, 0.89, 50), row("static", 1, 0.9)], "but static (eager) is as accurate and 2"),
        ([row("full", 4), row("early", 2, 0.89, 50), row("static", 1, 0.8)], "worth it: early (eager): 2.00x"),
        ([row("full", 4), row("early", 2, 0.89, 50), row("static", 3, 0.9)], "worth it: early (eager): 2.00x"),
        (
            [row("full", 4), row("early", 2, 0.89, 50), row("full", 1, form="onnx")],
            "0.50x as fast as the network without exits",
        ),
        ([row("full", 4), row("early", 8, 0.89, 105)], "5 % more MACs and 100 % more time"),
        ([row("full", 4, 0.9), row("early", 2, 0.92, 50)], "2.0 points of accuracy more"),
    ],
)
def test_the_verdict_follows_from_the_times(rows, says):
    sentence = verdict(rows)
    assert says in sentence
    assert sentence.startswith("worth it" if says.startswith("worth it") or "accuracy more" in says else "not worth it")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--forms", "tpu"], "expected forms among eager, compiled, onnx; got tpu"),
        (["--batch-sizes", "0"], "expected batch sizes of at least 1; got [0]"),
        (["--batch-sizes", "1.7"], "expected whole numbers for batch sizes; got 1.7"),
        (["--batch-sizes", "many"], "expected numbers for batch sizes"),
        (["--budgets", "0.001"], "expected a budget from 0."),
        (["--seconds", "-1"], "expected a positive number of seconds; got -1"),
        (["--static", "resnet_of_mine"], "resnet_of_mine"),
        (["--static", "{folder}"], "expected a run folder with config.yaml at"),
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
    assert ExitPolicy([NEVER, ALWAYS, ALWAYS]).exit_of(np.ones((1, 4))).tolist() == [1]
