"""Where the figures of a training go besides its run folder."""

from __future__ import annotations

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

_HOME = "exitwise.tracking"

TRACKERS = by_name(
    Entry("tensorboard", "event files in the run's folder tensorboard", f"{_HOME}.tensorboard:TensorBoard"),
    Entry("trackio", "trackio's project exitwise, on this machine", f"{_HOME}.trackio:Trackio"),
    Entry("mlflow", "MLflow's experiment exitwise, where MLFLOW_TRACKING_URI says", f"{_HOME}.mlflow:MLflow"),
    Entry("wandb", "Weights & Biases' project exitwise", f"{_HOME}.wandb:WandB"),
)
