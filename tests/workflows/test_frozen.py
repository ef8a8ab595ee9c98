"""Regime heads: the backbone runs over the images before the training, and not in it."""

import pytest
import timm
import torch
from safetensors.torch import save_file

import exitwise as ew
from exitwise.data import TrainingBatches
from exitwise.data.sampling import InOrder
from exitwise.errors import UserError
from exitwise.methods.losses.distil import DistilLast
from exitwise.runs.build import build, load_splits
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.trainer import Silent, Trainer
from exitwise.weighting.losses import Loss
from images import make_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    torch.manual_seed(5)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), root / "w.safetensors")
    return {
        "data": str(make_folder(root / "photos", count=20, size=(40, 40))),
        "model": "timm/resnet10t",
        "pretrained": str(root / "w.safetensors"),
        "regime": "heads",
        "exits": 3,
        "image_size": 32,
        "device": "cpu",
        "workers": 0,
        "batch_size": 16,
        "epochs": 3,
        "augmented_passes": 3,
        "optimizer": "sgd",
        "lr": 0.05,
    }


def model_of(run):
    return load_checkpoint(run.checkpoints.latest("last"))["model"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"method": "meta-weighted", "wpn_hidden": 8}, marks=pytest.mark.slow),
        {"distil": 0.5, "accumulate": 2},
    ],
)
def test_the_heads_are_those_of_running_the_backbone_every_time(given, tmp_path, options):
    """The oracle trains as every other regime does: images through the whole network, which is frozen."""
    settings = compose(None, flags={**given, **options})
    ours = ew.train(settings, tmp_path / "run")
    splits = load_splits(settings)
    oracle, method, optimizer, _ = build(settings, splits, CPU)
    batches = TrainingBatches(splits.train, settings.batch_size, settings.seed)
    loss = DistilLast(settings.distil, label_smoothing=0.1) if "distil" in options else Loss(label_smoothing=0.1)
    options = {"loss": loss, "accumulate": settings.accumulate}
    before = {name: value.clone() for name, value in oracle.state_dict().items()}
    history = Trainer(oracle, optimizer, method, batches, lambda: [0, 0, 0], epochs=3, **options).fit()
    torch.testing.assert_close(model_of(ours.run), oracle.state_dict(), rtol=1e-6, atol=1e-6)
    changed = {name for name, value in oracle.state_dict().items() if not torch.equal(value, before[name])}
    assert all(".head." in name for name in changed)
    assert {name.split(".")[1] for name in changed} == {"0", "1", "2"}
    for row, wanted in zip(ours.history, history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    calibrated = ew.collect_outputs(oracle, splits.calibration.batches(16))
    assert [ours.history[-1][f"calibration_accuracy_{k}"] for k in (1, 2, 3)] == ew.anytime(calibrated)


class Stop(Exception):
    """Stands for a killed process."""


class StopAt(Silent):
    def __init__(self, iteration):
        self.iteration = iteration

    def on_step(self, iteration, total, meters):
        if iteration == self.iteration:
            raise Stop


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(given, tmp_path):
    settings = compose(None, flags={**given, "checkpoint_every": 2, "method": "meta-weighted-shared"})
    whole = ew.train(settings, tmp_path / "whole")
    with pytest.raises(Stop):
        ew.train(settings, tmp_path / "run", StopAt(5))
    again = ew.train(settings, tmp_path / "run")
    assert again.resumed
    assert again.history == whole.history
    torch.testing.assert_close(model_of(again.run), model_of(whole.run), rtol=0, atol=0)
    best, _ = again.run.model(CPU), ew.calibrate(again.run, budget=0.6)
    assert best.exits == 3


def test_passes_are_taken_in_turn_and_may_be_kept_elsewhere(given, tmp_path):
    settings = compose(None, flags={**given, "augmented_passes": 2, "epochs": 4, "keep_in": str(tmp_path / "kept")})
    assert settings.kept_passes == 2
    (tmp_path / "kept").mkdir()
    seen = []

    class Watch(Silent):
        def on_keep(self, done, total):
            seen.append((done, total))

    ew.train(settings, tmp_path / "run", Watch())
    assert seen == [*((k, 6) for k in range(6)), (0, 1)]  # 42 images in batches of 16, twice; then 6 to calibrate on
    assert list((tmp_path / "kept").iterdir()) == []


def test_fast_paths_and_half_precision(given, tmp_path):
    options = {"precision": "bf16", "channels_last": True, "keep_as": "float16", "sync_batchnorm": True, "epochs": 2}
    theirs = ew.train(compose(None, flags={**given, "epochs": 2}), tmp_path / "plain")
    ours = ew.train(compose(None, flags={**given, **options}), tmp_path / "fast")
    for row, wanted in zip(ours.history, theirs.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"regime": "joint", "refit_heads": False},
            "augmented_passes goes with regime heads or refit_heads; got regime",
        ),
        ({"regime": "joint", "refit_heads": False, "augmented_passes": None, "keep_in": "x"}, "keep_in goes with"),
        ({"augment": "none"}, "augmented_passes are alike without augmentation; got 3"),
        ({"compile": True}, "the backbone but once, which is not worth compiling"),
        ({"keep_as": "float8"}, "setting keep_as: input should be 'float32' or 'float16'; got 'float8'"),
        ({"distil": 2}, "setting distil: input should be less than or equal to 1; got 2"),
    ],
)
def test_wrong_settings(given, options, message):
    with pytest.raises(UserError, match=message):
        compose(None, flags={**given, **options})


def test_the_regime_has_a_recipe_of_its_own(given):
    chosen = compose(None, flags={"data": given["data"], "model": given["model"], "regime": "heads"})
    assert (chosen.epochs, chosen.lr, chosen.kept_passes) == (40, 3e-3, 4)
    assert compose(None, flags={"data": given["data"], "model": given["model"]}).regime == "joint"


@pytest.mark.parametrize(("size", "batch", "ranks"), [(31, 12, 1), (31, 12, 3), (5, 8, 2), (4, 20, 5), (42, 16, 1)])
def test_in_order_every_image_comes_once(size, batch, ranks):
    samplers = [InOrder(size, batch, 0, rank, ranks) for rank in range(ranks)]
    shares = [sampler.positions() for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {samplers[0].batches_per_epoch}
    together = [torch.cat(parts) for parts in zip(*shares, strict=True)] if samplers[0].dealt(0) else shares[0]
    assert torch.equal(torch.cat(together), torch.arange(size))
    assert all(len(part) for share in shares for part in share)
