"""Counters and the drift check: exact counts, few false alarms, and alarms where inputs have changed."""

import warnings

import numpy as np
import pytest
import torch

from exitwise import EarlyExitRunner, ExitPolicy, create_model
from exitwise.deploy.monitor import DriftWarning, Monitor, Reference

COSTS = np.array([1.0, 2.0, 4.0])


def images(generator, n, sharper=1.0):
    """Exits and confidences as a calibrated network would give them."""
    confidence = generator.beta(5 * sharper, 2, size=n)
    return np.digitize(-confidence, [-0.8, -0.6]), confidence


def feed(monitor, exit, confidence, calls=10):
    for part, values in zip(np.array_split(exit, calls), np.array_split(confidence, calls), strict=True):
        monitor.add(part, values, COSTS[part], 0.001 * (1 + len(part) % 2))


def test_counts_are_exact():
    generator = np.random.default_rng(0)
    exit, confidence = images(generator, 777)
    monitor = Monitor(3)
    feed(monitor, exit, confidence)
    assert monitor.images == 777
    assert monitor.counts.tolist() == [int((exit == k).sum()) for k in range(3)]
    assert monitor.shares == pytest.approx([(exit == k).mean() for k in range(3)])
    assert monitor.mean_macs == pytest.approx(COSTS[exit].mean())
    assert set(monitor.latency()) == {"p50", "p95", "p99"}
    assert 0.001 <= monitor.latency()["p50"] <= monitor.latency()["p99"] <= 0.002


def test_latencies_are_of_the_latest_calls():
    monitor = Monitor(3, window=50)
    for seconds in [9.0] * 50 + [1.0] * 50:
        monitor.add(np.array([0]), np.array([0.5]), np.array([1.0]), seconds)
    assert monitor.latency() == {"p50": 1.0, "p95": 1.0, "p99": 1.0}


def test_inputs_like_the_calibration_images_rarely_alarm():
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):  # both the calibration images and the 10 windows are drawn anew
        monitor = Monitor(3, Reference.of(*images(generator, 500), 3), window=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            feed(monitor, *images(generator, 5000), calls=10)
        alarms += len(monitor.warned)
    assert alarms <= 1, f"{alarms} of 600 windows"


def test_harder_inputs_alarm_with_the_figures():
    generator = np.random.default_rng(2)
    monitor = Monitor(3, Reference.of(*images(generator, 1000), 3), window=500)
    feed(monitor, *images(generator, 500))
    assert monitor.warned == []
    with pytest.warns(DriftWarning, match=r"the last 500 images differ .* left at the exits, .* in calibration"):
        feed(monitor, *images(generator, 500, sharper=0.5))
    (message,) = monitor.warned
    assert "confidences between" in message


def test_surer_inputs_alarm_though_all_leave_where_they_did():
    generator = np.random.default_rng(3)
    exit, confidence = images(generator, 1000)
    monitor = Monitor(3, Reference.of(exit, confidence, 3), window=1000)
    with pytest.warns(DriftWarning):
        feed(monitor, exit, np.where(exit == 0, 0.99, confidence))
    assert "left at the exits" not in monitor.warned[0]


def test_no_number_is_least_sure():
    reference = Reference(1000, (1.0, 0.0, 0.0), (0.5,), (0.5, 0.5))
    monitor = Monitor(3, reference, window=60)
    with pytest.warns(DriftWarning, match="confidences between 0.50: 100/0 %"):
        monitor.add(np.zeros(60, int), np.full(60, np.nan), np.ones(60), 0.1)


def test_few_images_say_nothing():
    monitor = Monitor.of_all(3, Reference(1000, (1.0, 0.0, 0.0), (0.5,), (0.5, 0.5)), 4)
    monitor.add(np.array([2] * 4), np.array([0.1] * 4), np.array([4.0] * 4), 0.1)
    assert monitor.drift() is None


def test_a_reference_survives_its_record():
    reference = Reference.of(*images(np.random.default_rng(4), 300), 3)
    assert Reference.from_dict(reference.to_dict()) == reference
    assert sum(reference.bins) == pytest.approx(1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="window must be at least 50 images; got 3"):
        Monitor(3, window=3)
    with pytest.raises(ValueError, match="expected a reference of 3 exits; got one of 2"):
        Monitor(3, Reference(10, (0.5, 0.5), (), (1.0,)))
    for wrong in ((0, (1.0,), (), (1.0,)), (9, (), (), (1.0,)), (9, (1.0,), (float("nan"),), (1.0, 0.0))):
        with pytest.raises(ValueError, match="expected a positive number of images, and shares"):
            Reference(*wrong)
    with pytest.raises(ValueError, match="expected one bin more than the 1 edges; got 1"):
        Reference(9, (1.0,), (0.5,), (1.0,))
    with pytest.raises(ValueError, match="expected a monitor of 4 exits; got one of 3"):
        EarlyExitRunner(create_model("msdnet_small"), ExitPolicy([None] * 3), monitor=Monitor(3))


def test_a_budget_dial_is_no_drift():
    model = create_model("msdnet_small").eval()
    images = torch.randn(60, 1, 8, 8)
    early, late = ExitPolicy([0.0] * 3), ExitPolicy([None] * 3)
    result = EarlyExitRunner(model, early)(images)
    reference = Reference.of(result.exit, result.confidence, 4, early.thresholds)
    runner = EarlyExitRunner(model, early, monitor=Monitor(4, reference, window=60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner(images)
        runner.policy = late
        runner(images)
    assert runner.monitor.counts.tolist() == [60, 0, 0, 60]
    runner.policy = early
    with pytest.warns(DriftWarning):
        runner(100 * images)


def test_a_runner_reports_to_it_and_streams():
    model = create_model("msdnet_small").eval()
    monitor = Monitor(4)
    runner = EarlyExitRunner(model, ExitPolicy([0.11, 0.11, 0.11]), monitor=monitor)
    loader = [(torch.randn(5, 1, 8, 8), torch.zeros(5)), (torch.randn(3, 1, 8, 8), torch.zeros(3))]
    results = list(runner.stream(loader))
    assert [len(result.exit) for result in results] == [5, 3]
    exits = torch.cat([result.exit for result in results])
    assert monitor.counts.tolist() == torch.bincount(exits, minlength=4).tolist()
    assert monitor.mean_macs == pytest.approx(torch.cat([result.macs for result in results]).mean().item())
    assert len(list(runner.stream([images for images, _ in loader]))) == 2
