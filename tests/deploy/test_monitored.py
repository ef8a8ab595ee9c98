"""What a monitor has seen, as a record: all that can be compared, beside the calibration."""

import json

import numpy as np
import pytest

import exitwise as ew
from exitwise.deploy.monitored import monitored
from exitwise.errors import UserError

EDGES = [0.2, 0.5, 0.8]
THRESHOLDS = (0.6, None)


@pytest.fixture
def monitor():
    """One that has seen 300 images in calls of 7, of which some left by other thresholds."""
    generator = np.random.default_rng(0)
    reference = ew.Reference.of([0] * 40 + [2] * 60, np.linspace(0, 1, 100), 3, THRESHOLDS)
    monitor = ew.Monitor(3, reference, window=100)
    seen = []
    for call in range(43):
        exits, confidences = generator.choice([0, 2], 7, p=[0.4, 0.6]), generator.random(7)
        thresholds = (0.1, None) if call % 3 == 0 else THRESHOLDS
        monitor.add(exits, confidences, exits * 10.0 + 5, 0.01, thresholds)
        seen += [(*pair, thresholds == THRESHOLDS) for pair in zip(exits, confidences, strict=True)]
    return monitor, seen


def test_what_was_seen_is_kept_and_read_again(monitor, tmp_path):
    monitor, seen = monitor
    ew.write_monitored(monitor, tmp_path / "seen.json")
    found = ew.read_monitored(tmp_path / "seen.json")
    assert found == monitored(monitor)
    alike = [(exit, confidence) for exit, confidence, compared in seen if compared]
    assert (found.images, found.compared) == (301, len(alike))
    assert found.shares[0] == pytest.approx(sum(exit == 0 for exit, *_ in seen) / 301)
    assert found.compared_shares == pytest.approx([sum(exit == k for exit, _ in alike) / len(alike) for k in range(3)])
    edges = found.reference.edges
    places = [sum(confidence >= edge for edge in edges) for _, confidence in alike]
    assert found.bins == pytest.approx([places.count(k) / len(alike) for k in range(len(edges) + 1)])
    assert found.differences is None
    other = ew.Monitor(3, monitor.reference, window=100)
    with pytest.warns(ew.DriftWarning):
        other.add(np.zeros(200, np.int64), np.full(200, 0.9), np.ones(200), 0.1, THRESHOLDS)
    assert "the last 200 images differ from the calibration images: 100/0/0 % left" in monitored(other).differences
    assert len(monitored(other).warned) == 1


def test_what_is_no_record_is_refused(monitor, tmp_path):
    file = tmp_path / "seen.json"
    with pytest.raises(UserError, match="expected a monitor with a reference, that has seen images; got another"):
        ew.write_monitored(ew.Monitor(3), file)
    assert not file.exists()
    with pytest.raises(UserError, match="expected JSON at"):
        ew.read_monitored(file)
    ew.write_monitored(monitor[0], file)
    whole = json.loads(file.read_text())
    for damage in ({"bins": [1.0]}, {"shares": None}, {"reference": {}}, {"compared_shares": [0.5, 0.5]}):
        file.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(UserError, match="expected the record of a monitor in"):
            ew.read_monitored(file)
    file.write_text(json.dumps({**whole, "schema": "exitwise/bench"}))
    with pytest.raises(UserError, match="expected exitwise/monitor in"):
        ew.read_monitored(file)
