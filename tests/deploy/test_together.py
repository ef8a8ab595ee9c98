"""Samples that come together before a stage are those that were given, copied only where they lie apart."""

import numpy as np
import pytest

from exitwise.deploy.chain import Inside

ROWS = np.arange(48.0).reshape(6, 2, 4)


def alone(rows):
    return [Inside({"state": rows[i : i + 1]}, {"mean": rows[i : i + 1, 0]}) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("rows", "order", "is_copied"),
    [
        (ROWS, [0, 1, 2, 3, 4, 5], False),
        (ROWS, [2, 3, 4], False),
        (ROWS[[5, 1, 3]], [0, 1], False),
        (ROWS, [2, 4], True),
        (ROWS, [3, 2], True),
        (ROWS, [1, 1], True),
        (ROWS[::2], [0, 1], True),
        (np.zeros((3, 0)), [0, 1, 2], False),
        (np.zeros((3, 0)), [2, 0], False),
    ],
)
def test_rows_are_joined_in_order(rows, order, is_copied):
    parts = [Inside({"state": rows[i : i + 1]}) for i in order]
    state = Inside.together(parts).arrays["state"]
    np.testing.assert_array_equal(state, rows[order])
    assert np.shares_memory(state, rows) == (not is_copied and rows.size > 0)


def test_what_is_carried_goes_along():
    together = Inside.together([alone(ROWS)[i] for i in (4, 5, 0)])
    np.testing.assert_array_equal(together.arrays["state"], ROWS[[4, 5, 0]])
    np.testing.assert_array_equal(together.carried["mean"], ROWS[[4, 5, 0], 0])


def test_samples_of_several_batches_are_copied():
    other = ROWS + 100
    state = Inside.together([alone(ROWS)[0], alone(other)[1]]).arrays["state"]
    np.testing.assert_array_equal(state, np.stack([ROWS[0], other[1]]))
