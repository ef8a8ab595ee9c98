"""MLflow: runs on the server or in the folder that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

from exitwise.shown import text_of
from exitwise.tracking import PROJECT

LONGEST = 500
"""Characters of a value that MLflow takes."""


class MLflow:
    """A run by the name of its folder, in the experiment ``exitwise``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=folder.resolve().name)
        mlflow.log_params({name: text_of(value)[:LONGEST] for name, value in settings.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        mlflow.end_run()
