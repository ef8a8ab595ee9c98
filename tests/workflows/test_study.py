"""A study of tiny trainings: what it records, that it goes on, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import exitwise as ew
from exitwise.data.splits import Split
from exitwise.errors import UserError
from exitwise.storage.files import read_json
from exitwise.studying.cost import seconds_per_update
from exitwise.studying.records import STUDY, Cost
from exitwise.workflows import study as workflow

PLAN = {
    "stage": "select",
    "recipes": {"digits": {"max_iterations": 2, "device": "cpu"}},
    "seeds": [3, 4],
    "variants": {"uniform": {}, "shared": {"method": "meta-weighted-shared"}},
}


class Unseen(Split):
    def batches(self, *args):
        pytest.fail("test images are looked at")


@pytest.fixture(scope="module", autouse=True)
def patched():
    """Studies in which an update of one variant costs twice the baseline's, and that may not look at test images."""

    def times(settings, train):
        return {name: [2.0 if name == "shared" else 1.0] * 3 for name in settings}

    def splits(*args, load=workflow.load_splits, **kwargs):
        found = load(*args, **kwargs)
        return found._replace(test=Unseen(found.test.source, found.test.indices, found.test.preprocessing))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "seconds_per_update", times)
        patch.setattr(workflow, "load_splits", splits)
        patch.setattr(workflow, "_last", {})
        yield patch


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    ew.study(PLAN, folder)
    return folder


def test_all_runs_are_recorded(out):
    found = read_json(out / "study.json")
    keys = [(run["recipe"], run["variant"], run["stage"], run["seed"], run["updates"]) for run in found["runs"]]
    expected = [("uniform", 2), ("uniform", 4), ("shared", 2)]
    assert sorted(keys) == sorted(
        ("digits", name, "select", seed, length) for name, length in expected for seed in (3, 4)
    )
    for run in found["runs"]:
        assert len(run["exits"]) == len(run["exit_macs"]) == 4
        assert run["seconds"] > 0
        assert np.shape(run["curve"]) == np.shape(run["plain_curve"]) == (39, 3)
    assert {(gain["variant"], gain["equal"], gain["updates"], gain["baseline_updates"]) for gain in found["gains"]} == {
        ("shared", "updates", 2, 2),
        ("shared", "time", 2, 4),
    }


def test_the_record_reads_back_as_what_was_shown(out):
    study = STUDY.read(out)
    assert study.missing == 0
    assert str(study) == str(ew.study(PLAN, out))
    assert study.verdict.sentence in " ".join(str(study).split())


def test_what_is_done_is_not_done_again_and_what_was_killed_goes_on(out, monkeypatch):
    record = STUDY.path(out).read_text()
    content = json.loads(record)
    content["runs"] = content["runs"][:-1]  # killed before it was noted
    STUDY.path(out).write_text(json.dumps(content))
    trained = []
    monkeypatch.setattr(
        workflow, "_run", lambda task, *rest, run=workflow._run: trained.append(task) or run(task, *rest)
    )
    ew.study(PLAN, out)
    assert [task.seed for task in trained] == [4]
    after = read_json(STUDY.path(out))["runs"]
    assert after[:-1] == content["runs"]
    last = json.loads(record)["runs"][-1]
    assert after[-1] == {**last, "seconds": None}
    STUDY.path(out).write_text(record)


def test_what_the_plan_no_longer_names_stays_in_the_record(out):
    record = STUDY.path(out).read_bytes()
    changes = {"variants": {"uniform": {}, "other": {"lr": 0.3}}, "seeds": [3], "equal": ["updates"]}
    found = ew.study({**PLAN, **changes, "rule": {"equal": "updates"}}, out)
    assert found.missing == 0
    assert {gain.pair.variant for gain in found.gains} == {"other"}
    assert read_json(STUDY.path(out))["runs"][:-1] == json.loads(record)["runs"]
    again = ew.study(PLAN, out)
    assert again.missing == 0
    assert {gain.pair.variant for gain in again.gains} == {"shared"}
    STUDY.path(out).write_bytes(record)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"lr": 0.3}},
            "holds runs of recipe digits, variant uniform, with other settings: lr 0.1 .now 0.3.",
        ),
        ({"stage": "confirm"}, "holds a study with stage select .now confirm.: choose another --out"),
        ({"recipes": {"digits": {"max_iterations": 3, "device": "cpu"}}}, "max_iterations 2 .now 3."),
    ],
)
def test_a_folder_of_other_runs_is_refused_and_left_as_it_is(out, changes, message, monkeypatch):
    before = STUDY.path(out).read_bytes()
    monkeypatch.setattr(workflow, "_run", lambda *task: pytest.fail("a run has begun"))
    with pytest.raises(UserError, match=message):
        ew.study({**PLAN, **changes}, out)
    assert STUDY.path(out).read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UserError, match="expected the folder of a study, an empty one or nothing"):
        ew.study(PLAN, tmp_path)
    with pytest.raises(UserError, match="expected jobs and threads from 1 up; got 0"):
        ew.study(PLAN, tmp_path, jobs=0)


def test_the_cheaper_trains_as_much_longer(out):
    study = STUDY.read(out)

    def lengths(ratio):
        costs = {"digits": {"uniform": Cost(100), "shared": Cost(100, 1.0, ratio)}}
        return replace(study, costs=costs).pairs[1][3:]

    assert lengths(2.31) == (100, 230)
    assert lengths(1.02) == (100, 100)
    assert lengths(0.5) == (200, 100)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_several_processes_do_the_same_and_a_signal_is_survived(number, tmp_path, out):
    """The signal reaches the parent alone, while both of its processes train."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({**PLAN, "equal": ["updates"], "rule": {"equal": "updates"}}))
    command = [sys.executable, "-m", "exitwise", "study", str(plan), "--out", str(tmp_path / "out"), "--jobs", "2"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("digits/*/config.yaml")):
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(60) in (143, -9)
    assert "Traceback" not in child.stderr.read()  # which ends when the last of the processes has
    subprocess.run(command, check=True, timeout=200)
    runs, others = (STUDY.read(folder).runs for folder in (tmp_path / "out", out))
    expected = {(run["variant"], run["seed"]): run["exits"] for run in others if run["updates"] == 2}
    assert {(run["variant"], run["seed"]): run["exits"] for run in runs} == expected


def test_real_trainings_take_turns(tmp_path):
    from exitwise.workflows.train import train

    settings = {
        name: ew.compose("digits", flags={"device": "cpu", "epochs": 1000, "method": method})
        for name, method in (("a", "uniform"), ("b", "meta-weighted-shared"))
    }
    seconds = seconds_per_update(settings, train, rounds=3)
    assert {len(each) for each in seconds.values()} == {3}
    assert min(map(min, seconds.values())) > 0


def test_a_study_of_the_first_version_is_read():
    folder = Path(__file__).parents[2] / "results"
    study, old = STUDY.read(folder), read_json(folder / "study.json")
    names = {
        "first exit": 0,
        "last exit": -1,
        "cheapest quarter": "cheapest_quarter",
        "dearest quarter": "dearest_quarter",
    }
    for gain in study.gains:
        row = old["gain"]["test"][gain.pair.variant]
        place = names.get(gain.place, "curve")
        then = row["exits"][place] if isinstance(place, int) else row[place]
        assert gain.mean == pytest.approx(then["mean"], abs=0.1)
        assert gain.half_width == (then["interval"] and pytest.approx(then["interval"], abs=0.1))
    assert study.verdict.use == "uniform"
