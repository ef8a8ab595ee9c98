"""Each kind of data: it trains, goes on to the bit within an epoch, evaluates, moves to another path, and predicts."""

import csv
import os
import shutil
import signal

import pytest
import torch

import exitwise as ew
from exitwise.catalogue.sources import PATHS, SOURCES
from exitwise.errors import Interrupted
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.trainer import Silent
from images import make_folder
from shards import shards_of_folder
from tiny_texts import table, texts_of, tiny_network

COLOURS = {"recipe": "digits", "mean": [0.5] * 3, "std": [0.5] * 3, "augment": "crop", "batch_size": 16}
QUICK = {
    "method": "uniform",
    "device": "cpu",
    "calibration_fraction": 0.2,
    "epochs": 1,
    "max_iterations": 3,
    "lr": 0.01,
}
DOWNLOADED = {"cifar10", "cifar100", "fashion_mnist"}
"""Which lie nowhere on a machine that tests."""


def folder(root):
    return make_folder(root / "photos", count=20)


def manifest(root):
    rows = [(path.relative_to(root), path.parent.name) for path in sorted(folder(root).rglob("*.png"))]
    with (root / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return root / "photos.csv"


def shards(root):
    """25, 25 and 10 images."""
    return shards_of_folder(folder(root.with_name("unpacked")), root / "shards", 25)


def arrow(root):
    datasets = pytest.importorskip("datasets")
    home = folder(root.with_name("unpacked"))
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": path.read_bytes(), "path": None} for path in sorted(home.rglob("*.png"))],
            "label": [path.parent.name for path in sorted(home.rglob("*.png"))],
        }
    )
    made.cast_column("image", datasets.Image()).save_to_disk(root / "arrow")
    return root / "arrow"


def texts(root):
    tiny_network(root.with_name("network"))
    return table(root / "mails.csv", texts_of(60))


MADE = {"folder": folder, "manifest": manifest, "shards": shards, "arrow": arrow, "texts": texts}


class StopAt(Silent):
    """A reporter that sends this process a signal after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, iteration, total, meters):
        if iteration == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def weights(run):
    return load_checkpoint(run.checkpoints.latest("last"))["model"]


SLOW = {"mnist1d"}
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in (*(each for each in SOURCES if each not in DOWNLOADED), *PATHS)
]


@pytest.mark.parametrize("name", NAMES)
def test_each_source(name, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    given = {"data": str(MADE[name](home)), **COLOURS} if name in PATHS else {"data": name}
    if name == "texts":
        given = {"data": given["data"], "model": f"hf/{tmp_path / 'network'}", "tokens": 8, "batch_size": 16}
        given |= {"pretrained": "none", "exits": 2, "refit_heads": False}
    settings = compose(None, flags={**given, **QUICK})
    whole = ew.train(settings, tmp_path / "whole").run
    with pytest.raises(Interrupted):
        ew.train(settings, tmp_path / "run", StopAt(2))
    again = ew.train(settings, tmp_path / "run")
    assert again.resumed
    torch.testing.assert_close(weights(again.run), weights(whole), rtol=0, atol=0)

    place = None
    if name in PATHS:
        shutil.move(home, tmp_path / "away")
        place = tmp_path / "away" / os.path.relpath(settings.data, home)
    ew.calibrate(again.run, budget=0.8 if name == "texts" else 0.6, data=place)
    evaluation = ew.evaluate(again.run, data=place)
    splits = again.run.at(place).splits()
    assert evaluation.images == len(splits.test)
    if splits.test.source.paths:
        image = splits.test.source.paths[int(splits.test.indices[0])]
        assert ew.predict(str(again.run.path), [image])[0].prediction in splits.classes
    if name == "texts":
        assert ew.predict(str(again.run.path), ["win the prize"])[0].prediction in splits.classes
