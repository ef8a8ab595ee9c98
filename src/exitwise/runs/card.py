"""The model card of a run: what it is, what leaving early costs and gives, on which data, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from exitwise.deploy.calibration import Calibration
from exitwise.runs.records.evaluation import Evaluation
from exitwise.settings.schema import Settings
from exitwise.shown import macs, percent, shares
from exitwise.version import __version__

CLASSES = 50
"""So many classes are named at most."""

LINES = 10
"""Lines of the curve that are shown, about."""


def model_card(
    name: str,
    settings: Settings,
    data: dict[str, Any],
    calibration: Calibration,
    evaluation: Evaluation,
    licence: str | None,
) -> str:
    """Return the text of a card.

    Args:
        name: OWNER/NAME on the hub.
        settings: without paths of this machine.
        data: its record in the run.
        calibration, evaluation: of the run.
        licence: by its short name; None: not stated.
    """
    texts = settings.tokens is not None
    sample = "a text" if texts else "photo.jpg"
    what = "texts" if texts else "images"
    sizes = ", ".join(f"{count} {part}" for part, count in data["sizes"].items())
    classes = data["classes"][:CLASSES]
    more = f", and {len(data['classes']) - CLASSES} more" if len(data["classes"]) > CLASSES else ""
    return "\n".join(
        [
            _head(name, evaluation, licence, texts),
            f"# {name.rpartition('/')[2]}",
            "",
            f"A network with {len(evaluation.exit_macs)} exits, {settings.model}, that tells {len(data['classes'])} "
            f"classes of {what} apart: what is easy leaves early. Trained by exitwise {__version__}, method "
            f"{settings.method}.",
            "",
            "## What it costs and gives",
            "",
            f"On {evaluation.images} test {what}.",
            "",
            *_table(
                ("setting", "accuracy", "MACs", "of full", "leaving at each exit"),
                [*_alone(evaluation), *_calibrated(evaluation), *_curve(evaluation)],
            ),
            "",
            "## Thresholds",
            "",
            f"{calibration.intro} Measure: {calibration.policy.measure.name}. A sample leaves at the first exit whose "
            "confidence reaches the threshold there.",
            "",
            *_table(
                ("exit", "threshold"),
                [
                    (str(number), "none leave here" if each is None else f"{each:.6g}")
                    for number, each in enumerate(calibration.policy.thresholds, start=1)
                ],
            ),
            "",
            "## Data",
            "",
            f"{settings.data}: {sizes} ({what}). Classes: {', '.join(classes)}{more}.",
            "",
            "## Use",
            "",
            "```python",
            "import exitwise as ew",
            "",
            f'run = ew.Run.from_hub("{name}")',
            f"print(ew.predict(run, ['{sample}']))",
            'ew.export(run, "bundle")  # which runs without torch',
            "```",
            "",
            "## Licence",
            "",
            licence or "Not stated.",
            "",
        ]
    )


def _head(name: str, evaluation: Evaluation, licence: str | None, texts: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = "text-classification" if texts else "image-classification"
    accuracy = evaluation.anytime[-1] if evaluation.calibrated is None else evaluation.calibrated.accuracy
    result = EvalResult(
        task_type=task, dataset_type="test", dataset_name="test", metric_type="accuracy", metric_value=accuracy
    )
    said = ModelCardData(
        library_name="exitwise",
        pipeline_tag=task,
        tags=["early-exit", "dynamic-inference"],
        license=licence,
        model_name=name.rpartition("/")[2],
        eval_results=[result],
    )
    return f"---\n{said.to_yaml()}\n---\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _alone(evaluation: Evaluation) -> list[Sequence[str]]:
    pairs = enumerate(zip(evaluation.anytime, evaluation.exit_macs, strict=True), start=1)
    return [
        (f"all at exit {k}", percent(each), macs(cost), percent(cost / evaluation.full), "")
        for k, (each, cost) in pairs
    ]


def _calibrated(evaluation: Evaluation) -> list[Sequence[str]]:
    point = evaluation.calibrated
    if point is None:
        return []
    costs = macs(point.macs), percent(point.macs / evaluation.full)
    return [("**as calibrated**", percent(point.accuracy), *costs, shares(point.shares))]


def _curve(evaluation: Evaluation) -> list[Sequence[str]]:
    every = max(1, len(evaluation.budgets) // LINES)
    rows: list[Sequence[str]] = []
    for line in evaluation.budgets[::-every][::-1]:
        costs = macs(line.test.macs), percent(line.test.macs / evaluation.full)
        rows.append((f"budget {percent(line.budget)}", percent(line.test.accuracy), *costs, shares(line.test.shares)))
    return rows
