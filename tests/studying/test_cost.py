"""Turns of trainings that are none, by a clock that is none."""

from types import SimpleNamespace

import pytest

from exitwise.studying import cost
from exitwise.studying.cost import FIRST, ratio, seconds_per_update


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock.now)
    return clock


def trainer(clock, order):
    """Trains without end; an update takes what the settings say, and an evaluation after three of them a lot."""

    def train(settings, folder, reporter):
        reporter.on_start("")
        for number in range(1, 10**6):
            order.append(settings.name)
            clock.now += settings.seconds * len(order)  # a machine that becomes ever slower
            reporter.on_step(number, 10**6, None)
            if number % 3 == 0:
                clock.now += 1000
                reporter.on_epoch([])

    return train


def settings(name, seconds, interval=1):
    return SimpleNamespace(name=name, seconds=seconds, meta_interval=interval)


def test_variants_take_turns_and_their_ratio_is_what_it_costs(clock):
    order = []
    each = {"a": settings("a", 1.0), "b": settings("b", 3.0), "c": settings("c", 2.0, interval=2)}
    seconds = seconds_per_update(each, trainer(clock, order), rounds=10)
    assert {len(times) for times in seconds.values()} == {10}
    assert order[:8] == ["a", "b", "c", "c"] * 2
    assert len(order) == 4 * (10 + FIRST)
    assert ratio(seconds["b"], seconds["a"]) == pytest.approx(3, rel=0.1)
    assert ratio(seconds["c"], seconds["a"]) == pytest.approx(2, rel=0.1)


def test_an_error_of_one_ends_all(clock):
    def fail(settings, folder, reporter):
        if settings.name == "b":
            raise ValueError("b cannot")
        return trainer(clock, [])(settings, folder, reporter)

    with pytest.raises(ValueError, match="b cannot"):
        seconds_per_update({"a": settings("a", 1.0), "b": settings("b", 1.0)}, fail)
