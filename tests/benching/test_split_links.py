"""From which link speeds a split pays: the stages behind, for those that go on, against the bytes of their state."""

from types import SimpleNamespace

import numpy as np
import pytest

import exitwise as ew
from exitwise.benching.links import links_of
from exitwise.deploy.chain import Chain
from exitwise.runs.records.bench import BENCH, Bench, Link


def test_links_are_of_what_goes_on(flowers_bundle, monkeypatch, tmp_path):
    clock = SimpleNamespace(now=0.0)
    step = Chain.step

    def timed(chain, k, inside):
        clock.now += (0.001, 0.002, 0.004)[k]
        return step(chain, k, inside)

    monkeypatch.setattr(Chain, "step", timed)
    monkeypatch.setattr("exitwise.benching.links.time", SimpleNamespace(perf_counter=lambda: clock.now))
    samples = list(np.random.default_rng(0).normal(size=(3, 1, 1, 8, 8)).astype(np.float32))
    links = links_of(flowers_bundle, samples, np.array([0, 0, 1, 2, 2]))
    assert [link.after for link in links] == [1, 2]
    assert [link.seconds for link in links] == pytest.approx([(0.002 + 2 * 0.006) / 3, 0.004])
    for link in links:
        for precision, size in link.sizes.items():
            assert size == pytest.approx(ew.split(flowers_bundle, link.after, precision).device.state_bytes, abs=30)
            assert link.pays_from(precision) == pytest.approx(8 * size / link.seconds)
    assert [link.after for link in links_of(flowers_bundle, samples, np.array([0, 1]))] == [1]
    result = Bench([], {}, {}, links=links)
    BENCH.write(tmp_path, result)
    assert BENCH.read(tmp_path).links == links


def test_links_are_said_in_a_line():
    link = Link(1, 0.004, {"float32": 800_000, "int8": 200_500})
    wanted = (
        "split after exit 1: going on takes 4 ms; sending the state less, above 1600 (float32, 800 kB), 401 (int8, "
    )
    assert str(link) == f"{wanted}200 kB) Mbit/s"
