import numpy as np
import pytest

from exitwise.evaluation.outputs import accuracy_at, common_grid, mean_and_half_width


def test_the_interval_is_students():
    mean, half = mean_and_half_width([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert mean.tolist() == [2.0, 5.0]
    assert half == pytest.approx([4.302652729911275 / 3**0.5, 0])  # the table's t for 2 degrees of freedom


def test_a_single_value_has_no_interval():
    mean, half = mean_and_half_width([3.0])
    assert (float(mean), half) == (3.0, None)


def test_curves_are_compared_where_all_of_them_are():
    grid = common_grid([[3.0, 1.0, 9.0], [2.0, 7.0]], points=6)
    assert grid.tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert accuracy_at([3.0, 1.0, 9.0], [0.6, 0.4, 0.9], np.array([2.0, 3.0, 5.0])) == pytest.approx([0.5, 0.6, 0.7])
