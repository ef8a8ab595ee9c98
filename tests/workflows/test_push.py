"""A run sent to the hub and fetched again, against a stand-in on this machine."""

import shutil

import numpy as np
import pytest

import exitwise as ew
from exitwise.errors import UserError
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from hub_stand_in import StandIn
from images import make_folder

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = StandIn()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    files = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("pushed")
    flags = {
        "recipe": "digits",
        "data": str(make_folder(home / "photos", count=20)),
        "mean": [0.5] * 3,
        "device": "cpu",
    }
    flags |= {"std": [0.5] * 3, "batch_size": 16, "epochs": 1, "max_iterations": 2, "workers": 0}
    made = ew.train(compose(None, flags=flags), home / "run").run
    ew.calibrate(made, budget=0.6, guarantee=None)
    return made


def test_a_run_comes_back_as_it_was_and_says_nothing_of_this_machine(hub, run, tmp_path):
    with pytest.raises(UserError, match="expected an evaluated run"):
        ew.push(run, "someone/photos")
    assert not hub.files
    evaluation = ew.evaluate(run)
    pushed = ew.push(run, "someone/photos", licence="apache-2.0", private=True)
    assert pushed.address == f"{hub.address}/someone/photos"
    assert hub.private["someone/photos"]
    files = hub.files["someone/photos"]
    best = run.best()
    assert {name for name in files if name.startswith("checkpoints/")} == {
        f"checkpoints/{best.name}/{path.name}" for path in best.iterdir()
    }
    assert "images.csv.gz" not in files
    home = str(run.path.parent).encode()
    assert not any(home in content for content in files.values())
    card = files["README.md"].decode()
    for said in (
        "license: apache-2.0",
        "library_name: exitwise",
        "as calibrated",
        'from_hub("someone/photos")',
        "photos: ",
    ):
        assert said in card
    assert f"{100 * evaluation.anytime[0]:.1f} %" in card

    fetched = ew.Run.from_hub("someone/photos", folder=tmp_path / "fetched")
    for name, tensor in load_checkpoint(best)["model"].items():
        assert np.array_equal(tensor, load_checkpoint(fetched.best())["model"][name])
    assert fetched.classes == run.classes
    image = next((run.path.parent / "photos").rglob("*.png"))
    assert ew.predict(fetched, [image]) == ew.predict(run, [image])
    assert ew.evaluate(fetched, data=run.path.parent / "photos").anytime == evaluation.anytime
    with pytest.raises(UserError, match="say with --data where they lie"):
        ew.evaluate(fetched)
    in_cache = ew.Run.from_hub("someone/photos")
    assert ew.predict(in_cache, [image]) == ew.predict(run, [image])


def test_what_cannot_be_sent_or_fetched_is_one_line(hub, run, tmp_path):
    ew.evaluate(run)
    for call, message in (
        (lambda: ew.Run.from_hub("someone/nothing"), "to fetch someone/nothing from the hub; .*404"),
        (lambda: ew.Run.from_hub("no name at all"), "to fetch no name at all from the hub; "),
        (lambda: ew.push(run, "no name at all"), "to send no name at all to the hub; "),
    ):
        with pytest.raises(UserError, match=message) as told:
            call()
        assert len(str(told.value).splitlines()) == 1
    hub.files["someone/other"] = {"model.bin": b"1"}
    with pytest.raises(UserError, match="expected a run of exitwise as someone/other on the hub"):
        ew.Run.from_hub("someone/other", folder=tmp_path / "other")
    moved = shutil.copytree(run.path, tmp_path / "of_folder")
    config = moved / "config.yaml"
    (tmp_path / "network").mkdir()
    config.write_text(config.read_text().replace("model: msdnet_small", f"model: hf/{tmp_path / 'network'}"))
    with pytest.raises(UserError, match="expected a network that others can have"):
        ew.push(moved, "someone/photos")
