"""Fixtures: two small runs on digits with hostile names of classes and files, trained once, and their report."""

import shutil
from types import SimpleNamespace

import pytest

from exitwise.data import Split, Splits
from exitwise.data.sources import ArraySource
from exitwise.runs.build import load_splits
from exitwise.settings.compose import compose

HOSTILE = "</script><img src=x onerror=alert(1)>"
SECONDS = (0.002, 0.002, 0.004, 0.008)
"""Stand-ins for measured times."""


def hostile_splits(settings):
    """The digits, the class 3 and all images renamed."""
    splits = load_splits(settings)
    source = splits.train.source
    classes = [HOSTILE if name == "3" else name for name in source.classes]
    names = [f"{HOSTILE}{number}.png" for number in range(len(source.images))]
    renamed = ArraySource(source.images, source.targets, classes, names)
    return Splits(*(Split(renamed, split.indices, split.preprocessing) for split in splits[:3]), classes)


@pytest.fixture(scope="session")
def ready(tmp_path_factory):
    """Folders of a uniform and a meta-weighted run, and their data."""
    import exitwise as ew

    folder = tmp_path_factory.mktemp("runs")
    flags = {
        "uniform": {"method": "uniform", "epochs": 2},
        "<b>weighted": {"method": "meta-weighted", "epochs": 2, "max_iterations": 10, "meta_interval": 4},
    }
    paths = []
    for name, changes in flags.items():
        settings = compose("digits", flags={"device": "cpu", **changes})
        splits = hostile_splits(settings)
        run = ew.train(settings, folder / name, splits=splits).run
        ew.calibrate(run.path, budget=0.5, temperature=len(paths) > 0, device="cpu", splits=splits)
        ew.evaluate(run.path, device="cpu", splits=splits)
        paths.append(run.path)
    return SimpleNamespace(uniform=paths[0], weighted=paths[1], splits=splits)


def stand_in(monkeypatch, splits):
    """Times that do not change from one call to the next, and renamed data that a run finds by its settings."""
    monkeypatch.setattr("exitwise.reporting.gather.measure_exit_seconds", lambda model: SECONDS)
    monkeypatch.setattr("exitwise.runs.build.load_splits", lambda settings: splits)


@pytest.fixture
def runs(ready, monkeypatch):
    """The same, in the world of the stand-ins."""
    stand_in(monkeypatch, ready.splits)
    return ready


@pytest.fixture(scope="session")
def report(ready):
    """The report of both runs."""
    from exitwise.reporting.gather import gather

    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(monkeypatch, ready.splits)
        return gather([ready.uniform, ready.weighted], "cpu")


@pytest.fixture(scope="session")
def html(report):
    from exitwise.reporting.render import render

    return render(report)


@pytest.fixture
def copied(runs, tmp_path):
    """The folder of a copy of the meta-weighted run, to be spoilt."""
    return shutil.copytree(runs.weighted, tmp_path / "copy")
