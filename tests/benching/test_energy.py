"""Joules from the counters of a machine: here files that a call moves on."""

from types import SimpleNamespace

import pytest

from exitwise.benching import energy
from exitwise.benching.energy import Meter, joules_of


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Two packages, of which the second turns over; a part of the first, which is in it already."""
    monkeypatch.setattr(energy, "LEAST_SECONDS", 0.0)
    for name, micro in (("intel-rapl:0", 1_000), ("intel-rapl:0:0", 500), ("intel-rapl:1", 999_000)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{micro}\n")
        (folder / "max_energy_range_uj").write_text("999999\n")
    return tmp_path


def spend(counters, micro):
    for package in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        file = counters / package / "energy_uj"
        file.write_text(str((int(file.read_text()) + micro) % 1_000_000))


def test_all_packages_are_counted_once_and_turn_over(counters):
    meter = Meter(counters)
    assert meter
    calls = {"dear": lambda: spend(counters, 300_000), "cheap": lambda: spend(counters, 100)}
    assert joules_of(calls, meter) == pytest.approx({"dear": 0.6, "cheap": 0.0002})


def test_a_call_is_repeated_until_counters_have_moved(counters, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(energy, "LEAST_SECONDS", 5)
    done = []
    joules = Meter(counters).joules(lambda: (done.append(1), spend(counters, 10)))
    assert len(done) == 5
    assert joules == pytest.approx(20e-6)


def test_without_a_counter_nothing_is_said(counters, tmp_path):
    assert not Meter(tmp_path / "nowhere")
    assert joules_of({"a": lambda: None}, Meter(tmp_path / "nowhere")) == {}
    meter = Meter(counters)
    (counters / "intel-rapl:1" / "energy_uj").write_text("")  # as if it may not be read any more
    assert not Meter(counters)
    assert joules_of({"a": lambda: None}, meter) == {}
