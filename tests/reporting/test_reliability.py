import numpy as np
import pytest

from exitwise.reporting.reliability import reliability


def naive(confidences, correct, bins):
    error, filled = 0.0, []
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [
            (c, r) for c, r in zip(confidences, correct, strict=True) if low < c <= high or (number == 0 and c == 0)
        ]
        if inside:
            confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            filled.append((len(inside), confidence, accuracy))
            error += len(inside) / len(confidences) * abs(confidence - accuracy)
    return filled, error


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_and_error_are_those_of_a_loop(bins):
    generator = np.random.default_rng(0)
    confidences = np.sqrt(generator.random(200))
    correct = generator.random(200) < confidences**2
    confidences[:3] = [0.0, 0.25, 1.0]  # the borders
    result = reliability(confidences, correct, bins)
    filled, error = naive(confidences.tolist(), correct.tolist(), bins)
    assert result.error == pytest.approx(error)
    assert [list(each) for each in result.bins] == [pytest.approx(each) for each in filled]
    assert sum(each.size for each in result.bins) == 200


def test_extremes():
    sure = np.ones(10)
    assert reliability(sure, np.ones(10, dtype=bool)).error == 0
    assert reliability(sure, np.zeros(10, dtype=bool)).error == 1
    half = reliability(np.full(4, 0.5), np.array([True, False, True, False]))
    assert (half.error, half.bins) == (0, ((4, 0.5, 0.5),))
