"""`make bench` reads its records as benchmarks write them, and shows a step back."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield pytest.importorskip("bench")
    for name in ("bench", "common"):
        sys.modules.pop(name, None)


def test_records_are_read_as_they_are_written(bench, tmp_path):
    from common import Bar

    bars = {
        "first: step, (a) of b": Bar("first: step, (a) of b", 3.25, 4.0, unit=" s"),
        "share": Bar("share", 0.0625, 2.0, unit=" %"),
        "times faster": Bar("times faster", 8.5, 9.0, at_most=False),
    }
    (tmp_path / "a.json").write_text(json.dumps({"bars": [str(bar) for bar in bars.values()]}))
    found = bench.figures_of(tmp_path / "a.json")
    assert list(found) == list(bars)
    assert found == bars
    assert bench.figures_of(tmp_path / "none.json") == {}


def test_a_step_back_is_marked(bench):
    last = {"fast": bench.Bar("fast", 1.0, 2.0, unit=" s"), "much": bench.Bar("much", 2.0, 1.5, at_most=False)}
    now = {"fast": bench.Bar("fast", 1.2, 2.0, unit=" s"), "much": bench.Bar("much", 1.9, 1.95, at_most=False)}
    slower, less = bench.table("x", now, last)
    assert "20 % WORSE" in slower
    assert "SHORT" not in slower
    assert "SHORT OF THE BAR" in less
    assert "WORSE" not in less


def test_every_benchmark_that_is_run_is_there(bench):
    assert all((BENCHMARKS / f"{(words or [name])[0]}.py").exists() for name, words in bench.RUNS.items())
