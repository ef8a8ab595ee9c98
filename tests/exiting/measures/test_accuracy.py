"""Held-out accuracy as confidence, beside a slow isotonic regression and NumPy's interpolation."""

import numpy as np
import pytest

import planted
from exitwise.exiting.measures import create_measure, measure_from_json
from exitwise.exiting.measures.accuracy import GROUP, SHARE, STEP


def pooled(points):
    """Weighted isotonic regression: neighbours that fall are joined until none does."""
    blocks = [[x, y, n] for x, y, n in points]
    while True:
        falling = next((i for i in range(len(blocks) - 1) if blocks[i][1] >= blocks[i + 1][1]), None)
        if falling is None:
            return blocks
        (x, y, n), (z, w, m) = blocks[falling : falling + 2]
        blocks[falling : falling + 2] = [[(n * x + m * z) / (n + m), (n * y + m * w) / (n + m), n + m]]


def test_confidence_is_the_accuracy_of_what_was_as_sure():
    logits, targets, costs = planted.exits_that_err_apart(300)
    measure = create_measure("accuracy").fit(logits, targets, costs)
    sure, predictions = create_measure().read_all(logits)
    confidences, _ = measure.read_all(logits)
    for exit in range(3):
        order = np.argsort(sure[:, exit])
        points = {}
        for part in np.array_split(order, 300 // GROUP):
            place = round(float(sure[part, exit].astype(np.float64).mean()) / STEP)
            right, count = points.get(place, (0, 0))
            points[place] = right + (predictions[part, exit] == targets[part]).sum(), count + len(part)
        blocks = pooled([(place * STEP, right / n, n) for place, (right, n) in sorted(points.items())])
        places, heights = [0, *(x for x, _, _ in blocks), 1], [y for _, y, _ in blocks]
        expected = np.interp(sure[:, exit], places, [heights[0], *heights, heights[-1]])
        np.testing.assert_allclose(
            confidences[:, exit], (1 - SHARE) * expected + SHARE * sure[:, exit], rtol=0, atol=1e-5
        )


def test_samples_keep_their_order_and_confidences_say_how_often_they_are_right():
    logits, targets, costs = planted.exits_that_err_apart(4000)
    logits = logits * np.array([0.3, 1.0, 4.0], np.float32)[:, None]  # too modest, about right, far too sure
    measure = create_measure("accuracy").fit(logits[:2000], targets[:2000], costs)
    confidences, predictions = measure.read_all(logits[2000:])
    sure, _ = create_measure().read_all(logits[2000:])
    for exit in range(3):
        rising = np.diff(confidences[np.argsort(sure[:, exit], kind="stable"), exit])
        assert rising.min() >= -1e-6
        right = predictions[:, exit] == targets[2000:]
        for half in np.array_split(np.argsort(confidences[:, exit]), 4):
            assert confidences[half, exit].mean() == pytest.approx(right[half].mean(), abs=0.06)


@pytest.mark.parametrize("knots", [[[0.0, 0.5]], [[0.0, 0.5], [0.0, 0.6]], [[0.0, 0.5], [1.0, 0.4]]])
def test_knots_that_do_not_rise_are_refused(knots):
    with pytest.raises(ValueError, match="expected rising pairs as knots of exit 1"):
        measure_from_json({"measure": "accuracy", "temperatures": None, "parameters": {"knots": [knots]}})
