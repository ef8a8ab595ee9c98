"""Draws a report as one HTML file that needs nothing else: no network, no other file, no server.

Every text goes through Jinja's escaping, all data for the script through ``tojson``, which leaves no ``<``, ``>`` or
``&``; a content security policy in the page forbids requests and scripts other than its own.
"""

from __future__ import annotations

import secrets
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from exitwise import shown
from exitwise.deploy.calibration import Calibration
from exitwise.exiting.paired import signed
from exitwise.reporting.charts import chart_data, results_chart, threshold_text
from exitwise.reporting.content import Report, RunFigures
from exitwise.reporting.lines import differing_settings
from exitwise.reporting.made import now
from exitwise.reporting.results import Results
from exitwise.reporting.studies import parts, study_chart
from exitwise.shown import Noun
from exitwise.studying.comparison import PLACES
from exitwise.studying.records import Study
from exitwise.version import __version__


def render(report: Report) -> str:
    """Return the report as HTML."""
    return _page(
        "runs.html",
        report.noun,
        report=report,
        data=chart_data(report),
        differing=differing_settings([run.settings for run in report.runs]),
        weight_quarters=weight_quarters,
    )


def render_results(results: Results) -> str:
    """Return what the calls on a network gave as HTML."""
    return _page("results.html", results.evaluation.noun, results=results, data=results_chart(results))


def render_study(study: Study) -> str:
    """Return a study as HTML."""
    return _page(
        "study.html",
        "images",
        study=study,
        parts=parts(study),
        places=PLACES,
        data=study_chart(study),
        made=now(),
        version=__version__,
    )


def _page(template: str, noun: Noun, **values: Any) -> str:
    """Return a page of the frame that all have."""
    environment = Environment(
        loader=PackageLoader("exitwise.reporting", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters.update(
        percent=shown.percent,
        macs=shown.macs,
        milliseconds=shown.milliseconds,
        text=shown.text_of,
        threshold=threshold_text,
        signed=signed,
    )
    sources = {name: _source(environment, name) for name in ("page.css", "page.js")}
    return environment.get_template(template).render(
        **values,
        noun=noun,
        one=noun.removesuffix("s"),
        calibrated_for=calibrated_for,
        style=sources["page.css"],
        script=sources["page.js"],
        plotly=Markup(get_plotlyjs()),
        nonce=secrets.token_urlsafe(16),
    )


def _source(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def calibrated_for(calibration: Calibration) -> str:
    """Return what thresholds were asked to do, and how confidence is read."""
    measure = calibration.policy.measure
    parts = [f"{key} {shown.text_of(value)}" for key, value in calibration.budget.items()]
    if calibration.guarantee is not None:
        holds = "guaranteed" if calibration.guarantee["holds"] else "not guaranteed"
        parts.append(f"{holds} with probability {calibration.guarantee['probability']:.12g}")
    if calibration.policy.abstain_below is not None:
        parts.append(f"abstaining below {calibration.policy.abstain_below:.3g}")
    return ", ".join([*parts, f"by {measure.name}", *(["with temperatures"] if measure.temperatures else [])])


def weight_quarters(run: RunFigures) -> list[dict[str, Any]]:
    """Of each exit in each epoch shown: the mean weight of the quarter of the samples with the lowest loss, and of the
    quarter with the highest."""
    rows = []
    for row in run.weights:
        for exit in range(len(run.exits)):
            pairs = zip(row["losses"], row["weights"], strict=True)
            weights = [weight for _, weight in sorted((losses[exit], weights[exit]) for losses, weights in pairs)]
            quarter = max(1, len(weights) // 4)
            low, high = (f"{sum(part) / quarter:.2f}" for part in (weights[:quarter], weights[-quarter:]))
            rows.append({"epoch": row["epoch"], "exit": exit + 1, "low": low, "high": high})
    return rows
