"""Which published networks are picked, and what names and files of weights are taken."""

from itertools import pairwise

import pytest

from exitwise.advising.choice import FASTER, MOST, at_size, find, front, parse_weights, pick
from exitwise.catalogue.published import Published, published
from exitwise.errors import UserError


def seconds(row):
    return row.seconds


def brute_front(rows):
    return {
        row
        for row in rows
        if not any(
            other.seconds <= row.seconds and other.accuracy >= row.accuracy and other[1:] != row[1:] for other in rows
        )
    }


def test_the_front_is_what_nothing_beats():
    rows = [
        Published("a", 224, 0.70, 1e8, 0.001),
        Published("b", 224, 0.69, 2e8, 0.002),
        Published("c", 224, 0.80, 3e8, 0.003),
        Published("d", 224, 0.75, 3e8, 0.003),
        Published("e", 224, 0.81, 9e8, 0.009),
    ]
    assert {row.name for row in front(rows, seconds)} == {"a", "c", "e"}
    accuracies = {row[2:] for row in brute_front(published())}
    assert {row[2:] for row in front(published(), seconds)} == accuracies


@pytest.mark.parametrize("limit", [0.003, 0.01, 0.1])
def test_what_is_picked_lies_on_the_front_within_the_limit_and_apart(limit):
    rows = pick(published(), seconds, limit)
    assert 1 <= len(rows) <= MOST
    assert rows[0] == max((row for row in published() if row.seconds <= limit), key=lambda row: row.accuracy)
    for before, after in pairwise(rows):
        assert after.seconds <= FASTER * before.seconds
        assert after.accuracy < before.accuracy


def test_where_nothing_is_within_the_limit_the_cheapest_is_picked():
    (only,) = pick(published(), seconds, 1e-6)
    assert only.seconds == min(row.seconds for row in published())


def test_costs_at_another_size_go_by_area_from_the_nearest():
    rows = [Published("a.x", 224, 0.7, 4e8, 0.004), Published("a.y", 112, 0.6, 1e8, 0.001)]
    assert at_size(rows, None) == rows
    assert at_size(rows, 128) == [Published("a.y", 128, 0.6, 1e8 * (128 / 112) ** 2, 0.001 * (128 / 112) ** 2)]
    assert [row.name for row in at_size(rows, 200)] == ["a.x"]


def test_networks_are_found_with_and_without_the_name_of_weights():
    assert find("resnet18", 224).architecture == "resnet18"
    assert find("resnet18", 161).image_size == 160
    assert find("resnet18.no_such", 224).architecture == "resnet18"
    assert find("no_such", 224) is None


def test_weights_are_names_and_files():
    assert parse_weights(["a=b.pth", "timm/c.d=e=f"]) == {"a": "b.pth", "c.d": "e=f"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "timm/a=c"]):
        with pytest.raises(UserError, match="expected weights"):
            parse_weights(wrong)
