import pytest

from exitwise.errors import UserError
from exitwise.reporting.lines import differing_settings, group_runs, line_of

BASE = {"method": "uniform", "lr": 0.1, "p_range": None, "seed": 0, "device": "cpu", "workers": 0}


def label(*changes):
    return group_runs([f"run {i}" for i in range(len(changes))], [{**BASE, **change} for change in changes])


def test_runs_that_differ_in_the_seed_alone_belong_together():
    other = {"method": "meta-weighted", "seed": 1}
    changes = ({}, other, {"seed": 1, "device": "cuda"}, {"seed": 2, "workers": 3}, {**other, "seed": 0})
    assert label(*changes) == [("uniform", [0, 2, 3]), ("meta-weighted", [1, 4])]


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}], ["uniform"]),
        ([{}, {"lr": 0.2}], ["lr 0.1", "lr 0.2"]),
        (
            [{}, {"method": "meta-weighted", "p_range": [0.3, 1.2]}],
            ["uniform, p_range unset", "meta-weighted, p_range 0.3 1.2"],
        ),
    ],
)
def test_labels_say_what_differs(changes, labels):
    assert [text for text, _ in label(*changes)] == labels


def test_the_same_settings_and_seed_twice_are_refused():
    with pytest.raises(UserError, match=r"run 0 and run 2 have the same \(seed 0\)"):
        label({}, {"seed": 1}, {"device": "cuda"})


def test_settings_that_differ():
    assert differing_settings([BASE]) == []
    assert differing_settings([BASE, {**BASE, "seed": 3}, {**BASE, "lr": 1}]) == ["lr", "seed"]


def test_a_single_run_keeps_its_points():
    line = line_of([([3.0, 1.0, 2.0], [0.9, 0.5, 0.7])])
    assert (line.costs, line.accuracies, line.half_widths) == ([1.0, 2.0, 3.0], [0.5, 0.7, 0.9], None)


def test_seeds_become_a_mean_with_students_interval():
    line = line_of([([1.0, 3.0], [0.2 + shift, 0.4 + shift]) for shift in (0.0, 0.1, 0.2)])
    assert (line.costs[0], line.costs[-1], len(line.costs)) == (1.0, 3.0, 50)
    assert (line.accuracies[0], line.accuracies[-1]) == pytest.approx((0.3, 0.5))
    assert line.half_widths == pytest.approx([4.302652729911275 * 0.1 / 3**0.5] * 50)


@pytest.mark.parametrize(("seeds", "shown"), [(1, False), (4, False), (5, True)])
def test_an_interval_is_shown_from_five_seeds_on_and_holds_shares(seeds, shown):
    line = line_of([([1.0, 3.0], [0.02 if seed % 2 else 0.9, 0.99 if seed % 2 else 0.5]) for seed in range(seeds)])
    assert (line.band is not None) == shown
    if line.band:
        low, high = line.band
        assert (min(low), max(high)) == (0, 1)
