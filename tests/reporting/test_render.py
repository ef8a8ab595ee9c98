"""The page as text: everything escaped, nothing from elsewhere, and the figures in it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from exitwise.reporting.charts import accuracy_range, chart_data, threshold_text
from exitwise.reporting.content import Rival
from exitwise.reporting.render import render
from hostile_runs import HOSTILE


class Page(HTMLParser):
    """Tags with attributes, and the texts outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append(data.strip())


def test_hostile_names_stay_text(html):
    page = Page(html)
    assert HOSTILE in page.texts
    assert "<b>weighted" in page.texts
    assert any(text.startswith(HOSTILE) and text.endswith(".png") for text in page.texts)
    assert {attrs["src"][:11] for tag, attrs in page.tags if tag == "img"} == {"data:image/"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "b" not in {tag for tag, _ in page.tags}
    assert any(attrs["alt"].startswith(f"{HOSTILE}, taken for ") for tag, attrs in page.tags if tag == "img")


def test_data_cannot_end_its_script(html, report):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert not re.search("[<>&]", block)
    data = json.loads(block)
    assert [run["name"] for run in data["runs"]] == ["uniform", "<b>weighted"]
    first = report.runs[0].budgets[0]
    assert data["runs"][0]["budgets"][0]["accuracy"] == 100 * first.point.accuracy
    assert data["runs"][0]["budgets"][0]["text"]["seconds"] == f"{1000 * first.seconds:.3g} ms"


def test_nothing_is_loaded_from_elsewhere(html):
    page = Page(html)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in re.search("script-src [^;]*", policy)[0]
    nonce = re.search("'nonce-(.*?)'", policy)[1]
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs.get("nonce") for attrs in scripts] == [None, nonce, nonce]
    assert not [attrs for _, attrs in page.tags if "href" in attrs and not attrs["href"].startswith("#")]
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "form")]
    assert len(html) < 6e6


def test_a_temperature_at_a_bound_is_told(report):
    def told(*temperatures):
        run = report.runs[0]
        exits = [replace(exit, temperature=t) for exit, t in zip(run.exits, temperatures, strict=True)]
        page = render(replace(report, runs=[replace(run, exits=exits)], comparisons=report.comparisons[:1]))
        return re.findall(r"temperature of exit (\d) is at its bound ([\d.]+):", page)

    others = [1.0] * (len(report.runs[0].exits) - 2)
    assert told(1.0, 0.06, *others) == []
    assert told(19.99, 0.05, *others) == [("1", "20"), ("2", "0.05")]


def test_two_reports_do_not_share_their_nonce(report):
    first, second = (re.search("'nonce-(.*?)'", render(report))[1] for _ in range(2))
    assert first != second


def test_every_chart_and_control_has_a_name(html):
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labelled = {attrs["for"] for tag, attrs in page.tags if tag == "label" and "for" in attrs}
    controls = [attrs["id"] for tag, attrs in page.tags if tag in ("input", "select")]
    assert sorted(controls) == ["budget-0", "budget-1", "cost-macs", "cost-seconds", "run"]
    assert set(controls) - {"cost-macs", "cost-seconds"} <= labelled  # those two lie in their labels
    assert all(attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") in ("img", "region"))
    assert all(attrs["aria-labelledby"] in ids for _, attrs in page.tags if "aria-labelledby" in attrs)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for landmark in ("header", "nav", "main", "footer"):
        assert landmark in {tag for tag, _ in page.tags}


def test_figures_are_in_the_tables_too(html, report):
    texts = Page(html).texts
    for budget in report.runs[1].budgets:
        assert ", ".join(threshold_text(threshold) for threshold in budget.thresholds) in texts
    assert "Method uniform learns no weights: every sample of an exit counts the same throughout." in texts
    assert {"max_iterations", "differs"} <= set(texts)


def test_axes_do_not_make_noise_look_like_a_difference(report):
    low, high = accuracy_range(report)
    assert high - low >= 6
    drawn = [100 * value for line in report.comparisons for value in (*line.macs.accuracies, *line.exits)]
    assert low <= min(drawn)
    assert max(drawn) <= high <= 100.5


def test_axes_hold_all_marks(report):
    run = report.runs[0]
    rivals = [Rival("dear", 0.2, 3 * run.exits[-1].macs, None), Rival("cheap", 0.99, run.exits[0].macs / 2, 0.02)]
    data = chart_data(replace(report, runs=[replace(run, rivals=rivals)], comparisons=report.comparisons[:1]))
    marks = data["runs"][0]["marks"]
    for mark in (marks["calibrated"], marks["cheapest"], *marks["rivals"]):
        assert data["range"][0] <= mark["accuracy"] <= data["range"][1]
        for cost, chart in data["charts"].items():
            assert mark[cost] is None or chart["span"][0] <= mark[cost] <= chart["span"][1]
    assert data["range"][0] <= marks["level"]["accuracy"] <= data["range"][1]
