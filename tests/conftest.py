"""Shared by all tests: one thread per process (pytest runs two), and shapes checked."""

import gc
from importlib.util import find_spec

import pytest
import torch

import exitwise as ew
import shape_checks
import translations
from exitwise.settings.compose import compose

torch.set_num_threads(1)
shape_checks.switch_on()

pytest_plugins = ["browsers", "flowers", "hostile_runs", "two_processes"]


def pytest_collection_finish():
    """Libraries and tests stay: looking through them for garbage, again and again, took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A network trained on digits for 3 epochs; shared by the files that a worker runs."""
    settings = compose("digits", flags={"method": "uniform", "epochs": 3, "device": "cpu"})
    return ew.train(settings, tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session", autouse=True)
def _translated_once():
    if not find_spec("onnx") or not find_spec("onnx_ir"):
        yield
        return
    with translations.kept():
        yield


@pytest.fixture(autouse=True)
def _idle(monkeypatch):
    """The tests' own load is no news."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def _checked_anew():
    """Shapes are checked in the first calls of each function in a test."""
    shape_checks.CALLS.clear()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
