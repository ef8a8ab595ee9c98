"""Every measure, by its line in the catalogue: the same on arrays and tensors, in simulation, runner and exports."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import exitwise as ew
from exitwise import EarlyExitRunner, ExitPolicy, calibrate_proportions, count_cost, create_measure, create_model
from exitwise.catalogue import measures as catalogue
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import Calibration
from exitwise.evaluation.outputs import collect_logits
from exitwise.exiting.measures import measure_from_json, rows
from exitwise.exiting.outputs import Outputs
from running_mean import ENTRY

MEASURES = [*catalogue.MEASURES, ENTRY.name]
DEFINED = ["max-probability", "margin", "entropy", "patience", ENTRY.name]
"""Those that :func:`by_hand` knows as well."""
TEMPERATURES = (0.05, 0.1, 0.2, 0.3)


@pytest.fixture(autouse=True)
def one_more(monkeypatch):
    """A measure with a state of its own, registered as others are."""
    monkeypatch.setitem(catalogue.MEASURES, ENTRY.name, ENTRY)


def by_hand(measure, logits, temperatures):
    """Confidence and prediction of each sample at each exit, sample by sample."""
    table = []
    for sample in logits.tolist():
        row, said, seen = [], [], []
        for k, scores in enumerate(sample):
            scores = [score / temperatures[k] for score in scores]
            top = max(scores)
            odds = [math.exp(score - top) for score in scores]
            probabilities = [odd / sum(odds) for odd in odds]
            seen.append(probabilities)
            ordered = sorted(probabilities, reverse=True)
            said.append(probabilities.index(ordered[0]))
            streak = 0
            while streak < k and said[k - 1 - streak] == said[k]:
                streak += 1
            means = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
            confidence = {
                "max-probability": ordered[0],
                "margin": ordered[0] - ordered[1],
                "entropy": 1 + sum(q * math.log(q) for q in probabilities) / math.log(len(scores)),
                "patience": (streak + ordered[0]) / (k + 1),
                "running-mean": max(means),
            }[measure]
            row.append((confidence, means.index(max(means)) if measure == "running-mean" else said[-1]))
        table.append(row)
    both = np.array(table)
    return both[..., 0], both[..., 1]


@pytest.mark.parametrize("temperatures", [None, (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("measure", DEFINED)
def test_confidences_equal_the_definition(measure, temperatures):
    logits = torch.randn(40, 4, 3) * 2
    expected, classes = by_hand(measure, logits, temperatures or (1.0,) * 4)
    for given in (logits, logits.numpy()):
        confidences, predictions = create_measure(measure, temperatures).read_all(given)
        np.testing.assert_allclose(confidences, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(predictions, classes)


@pytest.mark.parametrize("measure", MEASURES)
def test_confidences_are_of_the_logits_type_and_from_0_to_1(measure):
    logits = torch.randn(40, 4, 3) * 2
    for given in (logits, logits.numpy()):
        confidences, predictions = create_measure(measure, TEMPERATURES).read_all(given)
        assert type(confidences) is type(predictions) is type(given)
        assert (confidences.dtype, str(predictions.dtype)[-5:]) == (given.dtype, "int64")
        assert 0 <= float(confidences.min()) <= float(confidences.max()) <= 1 + 1e-6


@pytest.mark.parametrize("measure", MEASURES)
def test_arrays_and_tensors_agree(measure):
    logits = torch.randn(500, 5, 10) * 4
    logits[0] = 0  # the first of equals is the answer
    logits[1, :, 1:] = -1000  # probabilities of 0
    ours, theirs = create_measure(measure).read_all(logits.numpy()), create_measure(measure).read_all(logits)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[1][1:], theirs[1][1:])


@pytest.mark.parametrize("measure", MEASURES)
def test_some_samples_are_read_on_alone(measure):
    logits = np.random.default_rng(0).normal(size=(30, 3, 4)).astype(np.float32)
    reading, index = create_measure(measure), np.array([2, 5, 28])
    together, alone = None, None
    for exit in range(3):
        whole = reading.read(logits[:, exit], exit, together)
        part = reading.read(logits[index, exit], exit, alone)
        np.testing.assert_allclose(part.confidence, whole.confidence[index], atol=1e-6)
        np.testing.assert_array_equal(part.prediction, whole.prediction[index])
        assert whole.state is None or reading.needs_every_exit
        together, alone = whole.state, rows(whole.state, index)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_written_is_read_again(measure):
    logits, targets = np.random.default_rng(0).normal(size=(30, 4, 5)), np.arange(30) % 5
    fitted = create_measure(measure, TEMPERATURES).fit(logits, targets, (1, 2, 3, 4))
    content = json.loads(json.dumps(fitted.to_json()))
    assert measure_from_json(content) == fitted
    assert content["measure"] == measure
    assert content["temperatures"] == list(TEMPERATURES)
    assert content.get("parameters", {}) == json.loads(json.dumps(fitted.parameters))


@pytest.mark.parametrize("entry", catalogue.MEASURES.values(), ids=lambda entry: entry.name)
def test_the_catalogue_knows_what_there_is(entry):
    assert entry.load().name == entry.name
    assert create_measure(entry.name) == entry.load()()
    assert entry.summary


def network():
    """A network whose exits disagree, and images."""
    torch.manual_seed(3)
    model = create_model("msdnet_small", num_classes=4)
    model(torch.randn(64, 1, 8, 8))
    return model.eval(), torch.randn(60, 1, 8, 8)


def policy_between(confidences, reading, shares):
    """Thresholds between two samples' confidences, so that rounding does not decide."""
    found = calibrate_proportions(confidences, shares).read_by(reading)
    levels = [np.sort(confidences[:, k]) for k in range(confidences.shape[1] - 1)]
    thresholds = [
        None if t is None else float((level[level < t - 1e-6].max() + t) / 2)
        for t, level in zip(found.thresholds, levels, strict=True)
    ]
    return ExitPolicy(thresholds, reading)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_runner_reads_as_the_simulation_does(measure):
    model, images = network()
    logits, targets = collect_logits(model, [(images, torch.randint(4, (60,)))])
    reading = create_measure(measure, TEMPERATURES).fit(logits, targets, (1, 2, 3, 4))
    outputs = Outputs.from_logits(logits, targets, reading)
    policy = policy_between(outputs.confidences, reading, [0.4, 0.0, 0.3, 0.3])
    expected = outputs.under(policy)
    assert len(set(expected.exits.tolist())) == 3
    for results in ([EarlyExitRunner(model, policy)(images)], map(EarlyExitRunner(model, policy), images.split(1))):
        prediction, exit, confidence, *_ = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
        np.testing.assert_array_equal(exit, expected.exits)
        np.testing.assert_array_equal(prediction, expected.predictions)
        np.testing.assert_allclose(confidence, expected.confidences, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of the network, by the usual measure."""
    pytest.importorskip("onnx")
    from exitwise.deploy.formats.onnx import export_onnx

    model, _ = network()
    out = tmp_path_factory.mktemp("bundles") / "usual"
    calibration = Calibration.of(ExitPolicy([0.5] * 3), count_cost(model).macs)
    export_onnx(model, calibration, out, classes=list("abcd"), preprocessing=Preprocessing(8, (0.5,), (0.5,)))
    return out


def bundle_by(exported, calibration, out):
    """Write the same graphs of the stages with another calibration."""
    import onnx

    from exitwise.deploy.formats.onnx import write_bundle

    out.mkdir()
    said = json.loads((exported / "manifest.json").read_text())
    graphs = [onnx.load(exported / stage["file"], load_external_data=False) for stage in said["stages"]]
    data = [Path(shutil.copy(exported / entry["file"], out)) for entry in said["data"]]
    for key in ("format", "version", "onnxruntime", "stages", "single", "data"):
        del said[key]
    write_bundle(out, graphs, data, said, calibration)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_bundle_decides_as_the_network(measure, exported, tmp_path):
    from exitwise.deploy.onnx_runner import OnnxRunner

    model, images = network()
    logits, targets = collect_logits(model, [(images, torch.randint(4, (60,)))])
    reading = create_measure(measure, TEMPERATURES).fit(logits, targets, (1, 2, 3, 4))
    policy = policy_between(Outputs.from_logits(logits, targets, reading).confidences, reading, [0.3, 0.0, 0.3, 0.4])
    out = tmp_path / "bundle"
    bundle_by(exported, Calibration.of(policy, count_cost(model).macs), out)
    wanted, onnx = EarlyExitRunner(model, policy)(images), OnnxRunner(out)
    for found in (onnx(images.numpy()), onnx.one_by_one(images.numpy())):
        np.testing.assert_array_equal(found.exit, wanted.exit.numpy())
        np.testing.assert_array_equal(found.prediction, wanted.prediction.numpy())
        np.testing.assert_allclose(found.confidence, wanted.confidence.numpy(), atol=1e-5)
        classes, probabilities = found.top(4)
        np.testing.assert_array_equal(classes[:, 0], found.prediction)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert measure_from_json(json.loads((out / "calibration.json").read_text())) == reading
    assert measure_from_json(json.loads((out / "manifest.json").read_text())["single"]) == reading


def test_a_run_is_calibrated_by_a_measure_from_outside(digits_run):
    found = ew.calibrate(
        digits_run.run.path, budget=0.5, measure=ENTRY.name, temperature=True, splits=digits_run.splits
    )
    assert digits_run.run.read_calibration().policy == found.policy
    assert 0 < found.policy.measure.factors[0] < 1
    test = ew.evaluate(digits_run.run.path, device="cpu", splits=digits_run.splits).calibrated
    assert found.expected["macs"] <= 0.5 * found.exit_macs[-1] * (1 + 1e-9)
    assert test.accuracy > 0.3


def test_the_usual_measure_and_the_command_line_come_from_the_catalogue(capsys):
    from exitwise.cli import main

    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in said for name in MEASURES[:-1])
    assert create_measure().name == MEASURES[0]
    assert "running_mean" in sys.modules


def test_bad_measures_are_refused():
    with pytest.raises(ValueError, match="unknown measure 'margn'; did you mean 'margin'"):
        create_measure("margn")
    with pytest.raises(ValueError, match="temperatures must be positive numbers"):
        create_measure(temperatures=(1.0, 0.0))
    with pytest.raises(ValueError, match="expected 3 temperatures, one per exit; got 2"):
        ExitPolicy([0.5, 0.5], create_measure(temperatures=(1.0, 1.0)))
    with pytest.raises(ValueError, match="expected the parameters of margin"):
        measure_from_json({"measure": "margin", "temperatures": None, "parameters": {"width": 3}})
