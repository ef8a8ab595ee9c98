"""All measures beside one another, from the command line and on a network with a loader."""

import pytest

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.exiting import comparison
from exitwise.exiting.comparison import Gain, MeasureGain
from exitwise.models.staged import StagedModel
from exitwise.workflows.compare import MeasuresCompared


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(comparison, "MEMBERS", 20)
    monkeypatch.setattr(comparison, "RESAMPLES", 100)


@pytest.mark.slow
def test_a_run_and_its_network_are_compared_alike(digits_run, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in digits_run.run.path.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", str(digits_run.run.path), "--compare", "--device", "cpu"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in digits_run.run.path.iterdir()} == before
    assert all(name in said for name in ("max-probability", "running-ensemble", "fitted-ensemble", "deferral"))
    found = ew.compare_measures(digits_run.run.model("cpu"), digits_run.splits.calibration.batches(64))
    assert found.advice in " ".join(said.split()) or found.advice.split(":")[0] in said
    assert found.samples == len(digits_run.splits.calibration)
    assert found.best in said


def test_the_advice_is_the_usual_measure_unless_an_interval_lies_above_zero():
    def of(name, *whole):
        return MeasureGain(name, 0.8, Gain(*whole), Gain(0.0, 0.0, 0.0), Gain(0.0, 0.0, 0.0))

    usual, unsure, better, best = (
        of("max-probability", 0.0, 0.0, 0.0),
        of("margin", 0.05, -0.001, 0.1),
        of("deferral", 0.01, 0.002, 0.02),
        of("running-ensemble", 0.019, 0.012, 0.026),
    )
    kept = MeasuresCompared([usual, unsure], 500)
    assert kept.best == "max-probability"
    assert (
        kept.advice == "keep max-probability: no other measure's interval along the curve lies above zero by a sample"
    )
    assert MeasuresCompared([usual, better], 500).best == "max-probability"  # 0.002 is one image
    taken = MeasuresCompared([usual, unsure, better, best], 500)
    assert taken.best == "running-ensemble"
    assert taken.advice == (
        "take running-ensemble: 1.9 points above max-probability along the curve (95 % interval 1.2 to 2.6)"
    )
    assert "+1.9 (+1.2 to +2.6)" in str(taken)


def test_few_samples_are_warned_of(digits_run):
    few = [tuple(part[:60] for part in next(iter(digits_run.splits.calibration.batches(64))))]
    with pytest.warns(ew.ExitwiseWarning, match="60 calibration images are few: .* may be 13 points off by chance"):
        ew.compare_measures(digits_run.run.model("cpu"), few)


def test_what_cannot_be_compared_is_refused(digits_run):
    network = digits_run.run.model("cpu")
    with pytest.raises(UserError, match="a network is calibrated on held-out samples; got none"):
        ew.compare_measures(network)
    with pytest.raises(UserError, match="a run has calibration samples of its own"):
        ew.compare_measures(digits_run.run.path, digits_run.splits.calibration.batches(64))
    alone = StagedModel(list(network.stages)[:1], network.num_classes, (1, 8, 8))
    with pytest.raises(UserError, match="expected a network with early exits to compare measures on; got one with 1"):
        ew.compare_measures(alone, digits_run.splits.calibration.batches(64))
