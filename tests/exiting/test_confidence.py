import math

import pytest
import torch
import torch.nn.functional as F

from exitwise import EarlyExitRunner, ExitPolicy, calibrate_proportions, create_model
from exitwise.benching.timing import ALWAYS, NEVER, measure_exit_seconds
from exitwise.evaluation.outputs import Outputs, collect_logits
from exitwise.exiting.confidence import Confidence, fit_temperatures

MEASURES = ["max-probability", "margin", "entropy", "patience"]


def by_hand(measure, logits, temperatures):
    """Confidence of each sample at each exit, sample by sample."""
    rows = []
    for sample in logits.tolist():
        row, said = [], []
        for k, scores in enumerate(sample):
            scores = [score / temperatures[k] for score in scores]
            top = max(scores)
            odds = [math.exp(score - top) for score in scores]
            probabilities = [odd / sum(odds) for odd in odds]
            ordered = sorted(probabilities, reverse=True)
            said.append(probabilities.index(ordered[0]))
            streak = 0
            while streak < k and said[k - 1 - streak] == said[k]:
                streak += 1
            row.append(
                {
                    "max-probability": ordered[0],
                    "margin": ordered[0] - ordered[1],
                    "entropy": 1 + sum(q * math.log(q) for q in probabilities) / math.log(len(scores)),
                    "patience": (streak + ordered[0]) / (k + 1),
                }[measure]
            )
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("temperatures", [None, (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("measure", MEASURES)
def test_confidences_equal_the_definition(measure, temperatures):
    logits = torch.randn(40, 4, 3) * 2
    confidences, predictions = Confidence(measure, temperatures).read_all(logits)
    expected = by_hand(measure, logits, temperatures or (1.0,) * 4)
    torch.testing.assert_close(confidences, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(predictions, logits.argmax(-1))
    assert 0 <= float(confidences.min()) <= float(confidences.max()) <= 1 + 1e-6


@pytest.mark.parametrize("measure", MEASURES)
def test_the_runner_reads_as_the_simulation_does(measure):
    model = create_model("msdnet_small", num_classes=4)
    model(torch.randn(64, 1, 8, 8))
    images = torch.randn(60, 1, 8, 8)
    logits, targets = collect_logits(model, [(images, torch.randint(4, (60,)))])
    temperatures = (0.05, 0.1, 0.2, 0.3)
    reading = Confidence(measure, temperatures)
    outputs = Outputs.from_logits(logits, targets, reading)
    found = calibrate_proportions(outputs.confidences, [0.4, 0.0, 0.3, 0.3]).read_by(reading)
    # Between two samples' confidences, so that rounding does not decide.
    levels = [outputs.confidences[:, k].sort().values for k in range(3)]
    thresholds = [
        None if t is None else float((level[level < t - 1e-6].max() + t) / 2)
        for t, level in zip(found.thresholds, levels, strict=True)
    ]
    policy = ExitPolicy(thresholds, reading)
    result = EarlyExitRunner(model, policy)(images)
    expected = policy.exit_of(outputs.confidences)
    assert torch.equal(result.exit, expected)
    assert len(set(expected.tolist())) == 3
    assert torch.equal(result.prediction, outputs.predictions.gather(1, expected[:, None])[:, 0])


def test_temperatures_make_the_targets_likeliest():
    targets = torch.randint(5, (400,))
    true = torch.randn(400, 2, 5) + 2 * F.one_hot(targets, 5)[:, None]
    scales = (3.0, 0.4)
    logits = true * torch.tensor(scales)[None, :, None]
    fitted = fit_temperatures(logits, targets)
    for k in range(2):
        losses = {
            t: F.cross_entropy(logits[:, k].double() / t, targets).item()
            for t in [fitted[k] * 0.98, fitted[k], fitted[k] * 1.02]
        }
        assert min(losses, key=losses.get) == fitted[k]
    assert fitted[0] / fitted[1] == pytest.approx(scales[0] / scales[1], rel=0.15)


def test_bad_readings_are_refused():
    with pytest.raises(ValueError, match=r"measure must be one of max-probability, .*; got 'max'"):
        Confidence("max")
    with pytest.raises(ValueError, match="temperatures must be positive numbers"):
        Confidence(temperatures=(1.0, 0.0))
    with pytest.raises(ValueError, match="expected 3 temperatures, one per exit; got 2"):
        ExitPolicy([0.5, 0.5], Confidence(temperatures=(1.0, 1.0)))
    with pytest.raises(ValueError, match="temperatures need at least one sample"):
        fit_temperatures(torch.randn(0, 2, 3), torch.zeros(0, dtype=torch.int64))


def test_measured_latencies_grow_with_depth():
    model = create_model("msdnet_small").eval()
    seconds = measure_exit_seconds(model, rounds=9)
    assert len(seconds) == 4
    assert seconds[0] < seconds[3]
    assert ExitPolicy([NEVER, ALWAYS, ALWAYS]).exit_of(torch.ones(1, 4)).tolist() == [1]
