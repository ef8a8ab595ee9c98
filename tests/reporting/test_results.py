"""A page about a network of one's own, from what the calls on it gave."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.errors import UserError
from exitwise.runs.records.bench import Bench, Network, Row, Saved


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(50, 1, 8, 8, generator=generator), torch.arange(50) % 3),
        (torch.randn(50, 1, 8, 8, generator=generator), torch.arange(50) % 3),
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Conv2d(1 if k == 0 else 4, 4, 3, 1, 1), nn.ReLU()) for k in range(4)]
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return ew.add_exits(network, exits=2, input_shape=(1, 8, 8)).eval()


@pytest.fixture(scope="module")
def results(model):
    fitted = ew.fit_exits(model, batches(0), epochs=1)
    calibration = ew.calibrate(model, batches(1), budget=0.8)
    evaluation = ew.evaluate(model, calibration, batches(2))
    rows = [
        Row(Network("full network", "full"), "eager", 8, 0.004, 0.004, 0.005, 0.006, 0.5, 100.0),
        Row(
            Network("early <b>exits", "early"),
            "eager",
            8,
            0.003,
            0.003,
            0.004,
            0.005,
            0.25,
            60.0,
            saved=Saved(0.25, 0.04),
        ),
    ]
    return [Bench(rows, {8: "worth it"}, {"onnx": "not here"}, ["it hardly can be"]), evaluation, fitted, calibration]


def test_a_budget_of_the_table_is_measured_on_test_samples(model, results):
    _, evaluation, _, calibration = results
    assert [line.budget for line in evaluation.budgets] == [line.budget for line in calibration.table]
    inputs, targets = map(torch.cat, zip(*batches(2), strict=True))
    for line in evaluation.budgets:
        policy = ew.ExitPolicy(calibration.thresholds_for(line.budget), calibration.policy.measure)
        left = ew.EarlyExitRunner(model, policy)(inputs)
        assert line.test.accuracy == pytest.approx((left.prediction == targets).float().mean().item())
        assert line.test.shares[0] == pytest.approx((left.exit == 0).float().mean().item())
    assert "budget 100.0 %" in str(evaluation)
    assert str(evaluation).count("budget") < len(evaluation.budgets)


def test_the_page_holds_what_the_calls_gave(results, tmp_path):
    written = ew.report(results, tmp_path / "own.html")
    page = written.path.read_text(encoding="utf-8")
    _, evaluation, _, calibration = results
    text = re.sub(r"\s+", " ", re.sub("<script.*?</script>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert "A network with 2 exits" in text
    assert "Calibrated for budget 0.8, by max-probability" in text
    assert f"{calibration.policy.thresholds[0]:.4f}" in text
    for accuracy in evaluation.anytime:
        assert f"{100 * accuracy:.1f} %" in text
    for line in evaluation.budgets:
        assert f"{100 * line.budget:.1f} % {100 * line.test.accuracy:.1f} %" in text
    assert "8 full network eager 4 ms 4 ms 5 ms 6 ms 2000 50.0 %" in text
    assert "8 early &lt;b&gt;exits eager 3 ms 3 ms 4 ms 5 ms 2667 25 ± 4 25.0 %" in text
    assert "Batch 8: worth it" in text
    assert "onnx was left out: not here" in text
    assert "Doubtful: it hardly can be" in text
    assert "Early exits, fitted on 100 samples" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    (line,) = data["charts"]["macs"]["lines"]
    assert sorted(line["y"]) == pytest.approx(sorted(100 * each.test.accuracy for each in evaluation.budgets))
    assert data["marks"]["calibrated"]["accuracy"] == pytest.approx(100 * evaluation.calibrated.accuracy)


def test_an_evaluation_and_its_calibration_are_enough(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ew.report(results[1::2]).path.name == "report.html"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Measured times" not in page
    with pytest.raises(UserError, match=r"report.html exists; give --overwrite"):
        ew.report(results)


def test_results_that_make_no_page(model, results, tmp_path):
    bench, evaluation, fitted, calibration = results
    other = ew.calibrate(model, batches(3), budget=0.9)
    for given, message in (
        (fitted, r"expected the results of evaluate\(network, calibration, test\) and that calibration.*ExitsFitted"),
        ([bench, evaluation], r"evaluate.* and that calibration.*; got Bench, Evaluation"),
        ([evaluation, evaluation, calibration], "one result of each kind.*; got Evaluation, Evaluation, Calibration"),
        ([evaluation, replace(calibration, exit_macs=(1, 2))], "expected the calibration of this network"),
        ([evaluation, other], "expected the calibration that was evaluated; got another of the same network"),
        ([evaluation, "runs/digits"], "results of one network, or run folders; got both, runs/digits among them"),
        ([evaluation, 3], "expected results of one network, or run folders; got int"),
    ):
        with pytest.raises(UserError, match=message):
            ew.report(given, tmp_path / "own.html")
    with pytest.raises(UserError, match="figures are drawn of run folders; got results"):
        ew.report([evaluation, calibration], tmp_path / "own.html", figures=tmp_path / "figures")
    assert not any(tmp_path.iterdir())
