"""Setting refit_heads: after a joint training, the early exits are fitted anew, and nothing else changes."""

import pytest
import torch

import exitwise as ew
from exitwise.errors import UserError
from exitwise.runs.build import build, load_splits
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.trainer import Silent
from images import make_folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    return {
        "data": str(make_folder(root / "photos", count=20, size=(40, 40))),
        "model": "timm/resnet10t",
        "pretrained": "none",
        "exits": 3,
        "image_size": 32,
        "device": "cpu",
        "workers": 0,
        "batch_size": 16,
        "epochs": 2,
    }


@pytest.fixture(scope="module")
def refitted(given, tmp_path_factory):
    return ew.train(compose(None, flags=given), tmp_path_factory.mktemp("runs") / "refitted")


def state_of(run, kind="last"):
    return load_checkpoint(run.checkpoints.latest(kind))["model"]


def is_early_head(name):
    return name.startswith(("stages.0.head.", "stages.1.head."))


def test_early_heads_are_fitted_anew_and_all_else_is_as_trained(given, refitted, tmp_path):
    plain = ew.train(compose(None, flags={**given, "refit_heads": False}), tmp_path / "plain")
    ours, theirs = state_of(refitted.run), state_of(plain.run)
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed
    assert all(map(is_early_head, changed))
    assert {name.split(".")[1] for name in changed} == {"0", "1"}


def test_what_is_recorded_is_the_network_as_it_is_now(given, refitted):
    settings = compose(None, flags=given)
    splits = load_splits(settings)
    model = build(settings, splits, torch.device("cpu")).model
    model.load_state_dict(state_of(refitted.run, "best"))
    accuracies = ew.anytime(ew.collect_outputs(model, splits.calibration.batches(16)))
    assert len(refitted.history) == 2
    assert [refitted.history[-1][f"calibration_accuracy_{k}"] for k in (1, 2, 3)] == accuracies
    last = (refitted.run.path / "metrics.csv").read_text().splitlines()[-1]
    assert ",".join(map(str, accuracies)) in last


class Stop(Exception):
    """Stands for a killed process."""


class StopWhileKeeping(Silent):
    def on_keep(self, done, total):
        if done == 3:
            raise Stop


@pytest.mark.slow
def test_a_run_killed_meanwhile_goes_on_bit_for_bit(given, refitted, tmp_path):
    settings = compose(None, flags=given)
    with pytest.raises(Stop):
        ew.train(settings, tmp_path / "run", StopWhileKeeping())
    again = ew.train(settings, tmp_path / "run")
    assert again.resumed
    assert again.history == refitted.history
    ours, theirs = state_of(again.run), state_of(refitted.run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert ew.train(settings, tmp_path / "run").history == refitted.history
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_without_early_exits_there_is_nothing_to_fit(given, tmp_path):
    result = ew.train(compose(None, flags={**given, "exits": 1}), tmp_path / "run")
    assert len(result.history) == 2


def test_regimes_and_networks_that_it_does_not_go_with(given):
    with pytest.raises(UserError, match="refit_heads goes with other regimes; regime heads fits them all along"):
        compose(None, flags={**given, "regime": "heads", "pretrained": "hub", "refit_heads": True})
    with pytest.raises(UserError, match="refit_heads is for backbones such as timm/resnet18; msdnet_small has its own"):
        compose("digits", flags={"refit_heads": True})


def test_a_run_keeps_its_exits_where_they_are(refitted, monkeypatch):
    """Even where the places that are chosen by default have changed since."""
    from exitwise.models.backbones import attach

    before, original = refitted.run.model(), attach.choose
    monkeypatch.setattr(
        attach, "choose", lambda places, exits, at, hint: original(places, exits, at or ["conv1"], hint)
    )
    assert [point.name for point in ew.Run(refitted.run.path).model().points] == [p.name for p in before.points]
    assert ew.train(refitted.run.settings, refitted.run.path).resumed
