"""The page of a study, on the recorded one of the first version."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import exitwise as ew
from exitwise.errors import UserError
from exitwise.reporting.render import render_study
from exitwise.reporting.studies import parts, study_chart
from exitwise.studying.records import STUDY

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def study():
    return STUDY.read(RESULTS)


@pytest.fixture(scope="module")
def html(study):
    return render_study(study)


def test_all_gains_stand_in_the_table(study, html):
    cells = re.findall(r'<td class="n">([+-]\d\.\d\d[^<]*)</td>', html)
    expected = [f"{gain.mean:+.2f}" + (f" ± {gain.half_width:.2f}" if gain.half_width else "") for gain in study.gains]
    assert [cell.removesuffix(" *") for cell in cells] == expected
    assert [cell.endswith("*") for cell in cells] == [gain.sure for gain in study.gains]
    assert study.verdict.sentence in html


def test_lines_are_means_over_seeds_and_differences_with_the_same_seed(study):
    charts = study_chart(study)["charts"]
    (part,) = parts(study)
    for gain in charts["gain-0"]["lines"]:
        name = part.lines[gain["number"]][0]
        assert name == gain["label"]
        overall = next(each for each in study.gains if (each.pair.variant, each.place) == (name, "curve"))
        assert np.mean(gain["y"]) == pytest.approx(overall.mean)
    curve = charts["curve-0"]["lines"][0]
    uniform = [run for run in study.runs if run["variant"] == "uniform"]
    assert curve["exits"]["y"] == pytest.approx(100 * np.mean([run["exits"] for run in uniform], axis=0))


def test_names_are_no_markup(study):
    wild = "<b onclick=x>&amp;</b>"
    runs = [{**run, "variant": wild if run["variant"] == "authors" else run["variant"]} for run in study.runs]
    names = [wild if name == "authors" else name for name in study.plan.variants]
    plan = study.plan.model_copy(update={"variants": {name: {} for name in names}})
    costs = {"cifar10_narrow": dict(zip(names, study.costs["cifar10_narrow"].values(), strict=True))}
    page = render_study(replace(study, plan=plan, runs=runs, costs=costs))
    assert wild not in page
    assert "&lt;b onclick=x&gt;" in page


def test_the_door_takes_a_study_alone(tmp_path, runs):
    written = ew.report(RESULTS, tmp_path / "study.html")
    text = written.path.read_text(encoding="utf-8")
    assert "Study of cifar10_narrow" in text
    assert json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["runs"] == []
    with pytest.raises(UserError, match=r"expected a run folder with config.yaml at .*results"):
        ew.report([RESULTS, runs.uniform], tmp_path / "both.html")
