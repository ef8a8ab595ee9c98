"""The table of published networks."""

import warnings
from datetime import date

import pytest

from exitwise.catalogue.published import AS_OF, published, warn_if_old
from exitwise.errors import ExitwiseWarning


def test_every_row_is_a_network_at_a_size():
    rows = published()
    assert len({(row.architecture, row.image_size) for row in rows}) == len(rows) > 500
    for row in rows:
        assert 0.2 < row.accuracy < 0.95
        assert 0 < row.macs <= 20e9
        assert 0 < row.seconds < 2


def test_what_is_known_of_a_network():
    (row,) = (row for row in published() if row.architecture == "tf_efficientnet_lite0")
    assert row == ("tf_efficientnet_lite0.in1k", 224, 0.748, 0.4e9, pytest.approx(0.0102))


def test_a_table_older_than_a_year_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_old(AS_OF)
        warn_if_old(date(AS_OF.year + 1, AS_OF.month, AS_OF.day))
    with pytest.warns(ExitwiseWarning, match=r"the table of candidates is of 2026-08-08, 1\.5 years old"):
        warn_if_old(date(2028, 2, 8))
