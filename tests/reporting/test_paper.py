"""The report's content as static figures."""

import re
from dataclasses import replace

from exitwise.reporting.paper import FORMATS, drawn, paper_figures


def test_figures_have_plain_names_and_what_the_report_has(report):
    figures = dict(paper_figures(report))
    runs = ("1-uniform", "2-b-weighted")
    parts = ("classes", "exits", "reliability", "learning")
    costs = ("accuracy_against_macs", "accuracy_against_time")
    assert list(figures) == [*costs, *(f"{run}-{part}" for run in runs for part in parts)]
    (axes,) = figures["accuracy_against_macs"].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    for each in report.comparisons:
        assert list(lines[each.label].get_ydata()) == [100 * value for value in each.macs.accuracies]
    (classes,) = figures["1-uniform-classes"].axes
    dots = [line.get_xdata()[0] for line in classes.get_lines() if line.get_marker() == "o"]
    assert dots == [100 * each.paired.difference for each in report.runs[0].classes]


def test_each_format_is_drawn_and_no_name_is_mathematics(report):
    run = report.runs[0]
    classes = [run.classes[0]._replace(name="$\\frac{$"), *run.classes[1:]]
    figures = dict(
        paper_figures(replace(report, runs=[replace(run, classes=classes)], comparisons=report.comparisons[:1]))
    )
    starts = {kind: drawn(figures["uniform-classes"], kind)[:8] for kind in FORMATS}
    assert starts["png"] == b"\x89PNG\r\n\x1a\n"
    assert re.match(b"<.xml", starts["svg"])
