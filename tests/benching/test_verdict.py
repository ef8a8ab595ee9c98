"""Whether leaving early is worth it: what the verdict follows from, in times and accuracies that are given."""

import io
import re
from dataclasses import replace
from typing import NamedTuple

import pytest
from rich.console import Console

from exitwise.benching.measured import Speed
from exitwise.benching.verdict import doubts, tails, verdict
from exitwise.runs.records.bench import Bench, Gap, Network, Row, Saved


def row(kind, mean, accuracy=0.9, form="eager", macs=50.0):
    macs = 100.0 if kind == "full" else macs
    return Row(Network(kind, kind), form, 1, mean, mean, mean, mean, accuracy, macs)


class Stated(NamedTuple):
    """Gaps and speeds as the rows have them, give or take so much."""

    points: float
    times: float

    def gap(self, one, other):
        return Gap(one.accuracy - other.accuracy, self.points)

    def speed(self, one, other):
        return Speed(other.mean / one.mean, self.times)


def said_of(rows, times=0.0, **wish):
    return verdict(rows, EARLY.network, Stated(0.005, times), **wish)


FULL, EARLY = row("full", 4), row("early", 2, 0.895)
CASCADE = Row(Network("cascade", "early"), "onnx", 1, 1, 1, 1, 1, 0.9, 50.0)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [FULL, EARLY],
            "worth it: early (eager): 2.00x (± 0.00) as fast as the full network (eager), -0.5 ± 0.5 points",
        ),
        (
            [FULL, EARLY, row("static", 1, 0.9)],
            "not worth it: early (eager): 2.00x .* static (eager) is 2.00x (± 0.00) as fast",
        ),
        (
            [FULL, EARLY, row("full", 1, 0.892, "int8")],
            "not worth it: .* full (int8) is 2.00x (± 0.00) as fast again, -0.8",
        ),
        ([FULL, EARLY, row("static", 2.05, 0.897)], "undecided: .* static (eager) takes as long and is as accurate"),
        ([FULL, EARLY, row("static", 1.95, 0.892)], "undecided: .*within noise (+0.3 ± 0.5 points)"),
        ([FULL, EARLY, row("static", 2.05, 0.91)], "not worth it: .* is no slower and more accurate (-1.5 ± 0.5"),
        (
            [FULL, row("early", 2, 0.93), row("static", 2, 0.91)],
            "worth it: .* is no faster and less accurate (+2.0",
        ),
        ([FULL, EARLY, row("static", 1, 0.88)], "worth it: early (eager): 2.00x"),
        ([FULL, EARLY, row("static", 1, None)], "worth it: early (eager): 2.00x"),
        (
            [FULL, EARLY, row("static", 3, 0.9)],
            "worth it: .*; 1.50x (± 0.00) as fast as static (eager), +0.0 ± 0.5 points",
        ),
        ([FULL, EARLY, row("full", 1, form="onnx")], "not worth it: early (eager): 0.50x .*full network (onnx)"),
        ([FULL, row("early", 3.92, 0.9)], "not worth it: .*; 50 % fewer MACs, but exits, small operators"),
        ([FULL, row("early", 3.9, 0.9, macs=95)], "not worth it: .*; 5 % fewer MACs: too few samples leave early"),
        ([FULL, row("early", 8, 0.9, macs=105)], "not worth it: .*; 5 % more MACs: too few samples leave early"),
        ([FULL, row("early", 4, 0.93)], "worth it: .* full (eager) is no faster and less accurate"),
        ([FULL, EARLY, CASCADE], "not worth it: .*; cascade (onnx) is 2.00x (± 0.00) as fast again, +0.0 ± 0.5 points"),
    ],
)
def test_the_verdict_follows_from_times_and_accuracies(rows, says):
    assert re.match(re.sub(r"([()+])", r"\\\1", says), said_of(rows))


def test_the_drop_that_was_asked_for_says_who_is_a_rival():
    rows = [FULL, EARLY, row("static", 1, 0.88)]
    assert said_of(rows).startswith("worth it")
    assert said_of(rows, allowed=0.02).startswith("not worth it")


def test_rows_that_another_beats_are_not_on_the_front():
    rows = [
        FULL,
        EARLY,
        row("static", 3, 0.89),
        row("static", 1, 0.8),
        row("static", 0.5, None),
        row("early", 2, 0.895),
    ]
    result = Bench(rows, {}, {})
    assert [result.is_dominated(each) for each in rows] == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("rows", "times", "says"),
    [
        ([FULL, EARLY], 0.9, "worth it: early (eager): 2.00x (± 0.90) as fast as the full network"),
        ([FULL, EARLY], 1.1, "undecided: .*; 2.00x (± 1.10) as fast as full (eager), -0.5 ± 0.5 points: times are too"),
        ([FULL, EARLY, row("static", 1.5)], 0.2, "not worth it: .* static (eager) is 1.33x (± 0.20) as fast again"),
        (
            [FULL, EARLY, row("static", 1.5, 0.898)],
            0.3,
            "undecided: .*; 0.75x (± 0.30) as fast as static (eager), -0.3 ± 0.5",
        ),
        ([FULL, EARLY, row("static", 2.05, 0.91)], 0.05, "not worth it: .* is no slower and more accurate"),
        ([FULL, EARLY, row("static", 2.05, 0.91)], 0.1, "undecided: .*; 1.02x (± 0.10) as fast as static"),
        (
            [FULL, row("early", 2, 0.93), row("static", 2, 0.91)],
            0.05,
            "worth it: .* is no faster and less accurate",
        ),
        ([FULL, row("early", 2, 0.93), row("static", 2, 0.91)], 0.2, "undecided: .*; 1.00x (± 0.20) as fast as static"),
        (
            [FULL, row("early", 2, 0.93), row("static", 3, 0.91)],
            0.55,
            "worth it: .*static (eager) is no faster and l",
        ),
        ([FULL, row("early", 3.92, 0.9)], 0.05, "not worth it: .*; 50 % fewer MACs, but exits, small operators"),
        ([FULL, row("early", 3.92, 0.9)], 0.1, "undecided: .*; 1.02x (± 0.10) as fast as full (eager), +0.0 ± 0.5"),
    ],
)
def test_what_is_faster_within_the_noise_of_times_is_undecided(rows, times, says):
    assert re.match(re.sub(r"([()+])", r"\\\1", says), said_of(rows, times))


def test_a_part_that_takes_longer_than_the_whole_is_doubted():
    alone = {Network(name, "static"): exit for exit, name in enumerate(("one", "two", "whole"))}
    rows = [
        Row(network, "onnx", 8, mean, mean, mean, mean, 0.9, macs)
        for network, mean, macs in zip(alone, (3, 1, 2), (10, 20, 30), strict=True)
    ]
    assert doubts(rows, alone) == [
        "batch 8, onnx: one took 3.00x as long as two, for fewer MACs: an exit that is slow, or other work beside the "
        "measuring"
    ]
    assert doubts([rows[0], rows[2], EARLY], alone)[0].startswith("batch 8, onnx: one took 1.50x as long as whole")
    assert doubts([replace(rows[0], macs=25), *rows[1:]], alone) == []
    assert doubts([replace(rows[0], mean=1.05), *rows[1:]], alone) == []
    assert doubts([replace(rows[0], batch_size=1), *rows[1:]], alone) == []


def test_a_policy_that_is_faster_than_its_first_exit_is_doubted():
    alone = {Network("one", "static"): 0, Network("whole", "full"): 1}
    whole = Row(Network("whole", "full"), "onnx", 1, 8.0, 8.0, 8.0, 8.0, 0.9, 30)
    cut = [Row(Network("one", "static"), "onnx", 1, 4.0, 4.0, 4.0, 4.0, 0.9, 10), whole]
    early = Row(Network("early", "early"), "onnx", 1, 2.0, 2.0, 2.0, 2.0, 0.9, 12)
    assert doubts([*cut, early], alone) == [
        "batch 1, onnx: early took 0.50x as long as one, which is part of it: other work beside the measuring"
    ]
    assert doubts([*cut, replace(early, mean=3.9)], alone) == []
    assert doubts([*cut, replace(early, form="eager")], alone) == []


def test_the_table_fits_into_eighty_columns():
    name = Network("early exits, as calibrated", "early")
    wide = Row(name, "compiled", 64, 0.1234, 0.1234, 0.1234, 0.1234, 0.925, 1e6, Gap(-0.105, 0.011), 4 * 10**8, None)
    result = Bench([wide, replace(wide, saved=Saved(-0.32, 0.17)), replace(wide, accuracy=None, gap=None)], {}, {})
    console = Console(width=80, file=io.StringIO(), markup=False)
    console.print(result)
    lines = console.file.getvalue().splitlines()
    shown = " ".join(" ".join(lines).split())
    assert "early exits, as calibrated 123 123 123 123 -32 ± 17 400.0 92.5 -10.5 ± 1.1 *" in shown
    assert max(map(len, lines)) <= 80
    assert len(lines) < 14


def test_longer_tails_are_said_though_the_mean_is_shorter():
    full, early = row("full", 10.0), row("early", 5.0)
    rows = [full, replace(early, p95=10.5, p99=15.0), replace(early, mean=6.0, form="onnx", p99=99.0)]
    said = tails(rows, early.network)
    assert said == (
        "worse in the longest times of early (eager): p99 1.5e+04 ms, 1.50x that of the full network (1e+04 ms)"
    )
    assert tails([full, early], early.network) == ""


def test_energy_has_a_column_where_it_is_known():
    rows = [replace(row("full", 0.010), joules=0.025), row("early", 0.005)]
    said = str(Bench(rows, {}, {}))
    assert " mJ " in said
    assert re.search(r"full .* 25 ", said)
    assert "mJ" not in str(Bench([row("full", 0.010)], {}, {}))
