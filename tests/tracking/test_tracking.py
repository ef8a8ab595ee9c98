"""Trainings followed by tools: each adapter tells what it is given, and none that fails ends a training."""

import sys

import pytest

import exitwise as ew
from exitwise.catalogue.trackers import TRACKERS
from exitwise.errors import ExitwiseWarning, UserError
from exitwise.tracking import Tracking


class Tool:
    """Stands for trackio, mlflow or wandb: remembers what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        def tell(*given, **more):
            self.told.append((name, given, more))
            return self

        return tell

    def steps(self):
        """What was logged at which step, whatever the tool's way to say it."""
        logged = [(given, more) for name, given, more in self.told if name in ("log", "log_metrics")]
        return [(more["step"], given[0]) for given, more in logged]


@pytest.fixture
def tool(monkeypatch):
    def stand_in(name):
        made = Tool()
        monkeypatch.setitem(sys.modules, name, made)
        monkeypatch.delitem(sys.modules, f"exitwise.tracking.{name}", raising=False)
        return made

    yield stand_in
    for name in TRACKERS:
        sys.modules.pop(f"exitwise.tracking.{name}", None)


@pytest.mark.parametrize(("name", "ends"), [("trackio", "finish"), ("mlflow", "end_run"), ("wandb", "finish")])
def test_a_tool_is_told_settings_figures_and_the_end(tool, tmp_path, name, ends):
    told = tool(name)
    with Tracking([name]) as tracking:
        tracking.start(tmp_path / "mine", {"lr": 0.1})
        tracking.epoch({"epoch": 1, "iteration": 7, "loss": 2.0, "gradient_norm": float("nan")})
        tracking.step(8, lambda: {"loss": 1.0})  # too soon
        tracking.sent -= 60
        tracking.step(9, lambda: {"loss": 1.0})
    (first, row), (second, at_step) = told.steps()
    assert (first, second, at_step) == (7, 9, {"step/loss": 1.0})
    assert set(row) == {"epoch/loss", "epoch/seconds"}
    assert "mine" in str(told.told)
    assert "0.1" in str(told.told)
    assert told.told[-1][0] == ends


def test_tensorboard_gets_a_run_that_it_can_read(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = {"track": ["tensorboard"], "epochs": 2, "max_iterations": 4, "batch_size": 512}
    ew.train(ew.compose("digits", flags=flags), tmp_path / "run")
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = found.Scalars("epoch/loss")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(losses) == len(rows) - 1
    assert losses[0].value == pytest.approx(float(rows[1].split(",")[rows[0].split(",").index("loss")]), rel=1e-5)
    assert "epoch/calibration_accuracy_1" in found.Tags()["scalars"]


@pytest.mark.parametrize("when", ["init", "log"])
def test_a_tool_that_cannot_be_reached_ends_no_training(tool, tmp_path, when):
    def fail(*given, **more):
        raise ConnectionError("no route to host\nand more")

    broken = tool("trackio")
    setattr(broken, when, fail)
    flags = {"track": ["trackio"], "max_iterations": 2, "epochs": 2}
    with pytest.warns(ExitwiseWarning, match="trackio fails, and is told nothing more: no route to host") as warned:
        result = ew.train(ew.compose("digits", flags=flags), tmp_path / "run")
    assert len([each for each in warned if "trackio" in str(each.message)]) == 1
    assert result.history


def test_what_is_not_there_is_said_before_anything_is_written(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        ew.compose("digits", flags={"track": ["tensorbord"]})
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "exitwise.tracking.wandb", raising=False)
    with pytest.raises(UserError, match=r"track wandb needs wandb: pip install 'exitwise\[wandb\]'"):
        ew.train(ew.compose("digits", flags={"track": ["wandb"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
