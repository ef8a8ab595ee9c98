"""Students of another run: a smaller network learns from its answers, with or without early exits."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import v2

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.runs.build import load_splits
from exitwise.runs.teacher import find_teacher
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.trainer import Silent
from images import make_folder, save_image

LEVELS = {"dark": 60, "grey": 130, "light": 200}
SAID = {
    "model": "timm/test_resnet",
    "pretrained": "none",
    "exits": 1,
    "augment": "resize",
    "smallest_crop": 0.5,
    "refit_heads": False,
    "device": "cpu",
    "workers": 0,
    "batch_size": 16,
    "epochs": 6,
    "optimizer": "adamw",
    "lr": 3e-3,
}
TEACHER = {**SAID, "image_size": 32, "mean": [0.4] * 3, "std": [0.3] * 3}
STUDENT = {**SAID, "image_size": 24, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), count=24, size=(40, 40))


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    """Images of the same three kinds, of which every folder has as many."""
    root = tmp_path_factory.mktemp("mislabelled")
    for c, name in enumerate(LEVELS):
        for i in range(24):
            save_image(root / name / f"{i:02d}.png", (40, 40), level=[*LEVELS.values()][i % 3], seed=1000 + 100 * c + i)
    return root


@pytest.fixture(scope="module")
def teacher(photos, tmp_path_factory):
    return ew.train(compose(None, flags={**TEACHER, "data": str(photos)}), tmp_path_factory.mktemp("t") / "run").run


@pytest.fixture(scope="module")
def splits(photos):
    return load_splits(compose(None, flags={**STUDENT, "data": str(photos)}))


def test_a_student_learns_what_its_labels_do_not_say(teacher, splits, mislabelled, tmp_path):
    """Of the three kinds of images, which the labels mix evenly, it is told by the teacher alone: all its exits are."""
    flags = {**STUDENT, "data": str(mislabelled), "exits": 2, "distil_from": str(teacher.path), "distil": 1.0}
    run = ew.train(compose(None, flags=flags), tmp_path / "run").run
    network = run.model()
    network.load_state_dict(run.checkpoints.load("last").tree["model"])  # the best epoch is of its calibration labels
    assert min(ew.anytime(ew.collect_outputs(network, splits.train.batches(32)))) > 0.9


def test_the_teacher_sees_the_images_as_it_was_trained_on(teacher, splits, tmp_path):
    settings = compose(None, flags={**STUDENT, "distil_from": str(teacher.path), "data": teacher.settings.data})
    found = find_teacher(settings, tmp_path / "run", splits, torch.device("cpu"))
    images, _ = next(iter(splits.train.batches(5)))
    anew = v2.functional.resize((images * 0.25 + 0.5), [32, 32], antialias=True)
    expected = teacher.model()(v2.functional.normalize(anew, [0.4] * 3, [0.3] * 3))[-1]
    with torch.no_grad():
        torch.testing.assert_close(found.answer(images), expected, rtol=1e-4, atol=1e-4)


class Stop(Exception):
    """Stands for a killed process."""


class StopAt(Silent):
    def on_step(self, iteration, total, meters):
        if iteration == 6:
            raise Stop


@pytest.mark.slow
def test_a_resumed_run_has_the_same_teacher_and_ends_alike(teacher, tmp_path):
    theirs = shutil.copytree(teacher.path, tmp_path / "teacher")
    flags = {**STUDENT, "data": teacher.settings.data, "exits": 2, "epochs": 2, "distil_from": str(theirs)}
    shared = {"method": "meta-weighted-shared", "wpn_hidden": 8, "checkpoint_every": 1, "distil_temperature": 4.0}
    settings = compose(None, flags={**flags, **shared})
    assert settings.distil == 0.5
    whole = ew.train(settings, tmp_path / "whole")
    with pytest.raises(Stop):
        ew.train(settings, tmp_path / "run", StopAt())
    record = json.loads((tmp_path / "run" / "teacher.json").read_text())
    best = teacher.best()
    sha = hashlib.sha256((best / "tensors.safetensors").read_bytes()).hexdigest()
    assert (record["run"], record["checkpoint"], record["sha256"]) == (str(theirs), best.name, sha)
    again = ew.train(settings, tmp_path / "run")
    assert again.resumed
    assert again.history == whole.history
    changed = load_checkpoint(theirs / "checkpoints" / best.name)
    next(iter(changed["model"].values())).add_(1)
    save_checkpoint(theirs / "checkpoints" / best.name, changed)
    before = sorted(tmp_path.glob("run/**/*"))
    with pytest.raises(UserError, match=f"the teacher that .* was begun with, {best.name} of .*has other weights"):
        ew.train(settings, tmp_path / "run")
    assert sorted(tmp_path.glob("run/**/*")) == before


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    return stop.value.code, *capsys.readouterr()


def flags_of(settings):
    lists = {"mean", "std"}
    for key, value in settings.items():
        if value is False:
            yield f"--no-{key.replace('_', '-')}"
        else:
            yield from [f"--{key.replace('_', '-')}", *map(str, value if key in lists else [value])]


def test_the_command(teacher, tmp_path, capsys):
    words = ("train", *flags_of({**STUDENT, "epochs": 1}), "--data", teacher.settings.data, "--out", tmp_path / "run")
    code, said, errors = call(capsys, *words, "--distil-from", teacher.path)
    assert code == 0, errors
    assert f"taught by {teacher.path}" in "".join(said.split("\n"))
    assert ew.Run(tmp_path / "run").settings.distil == 0.5
    assert call(capsys, "evaluate", tmp_path / "run")[0] == 0  # needs no teacher
    (tmp_path / "empty").mkdir()
    for given, expected in (
        (["--distil-from", tmp_path / "empty"], "expected a run folder with config.yaml at .*empty; found none"),
        (["--distil-from", tmp_path / "run"], "expected another run to learn from .*; got the run itself"),
    ):
        code, _, errors = call(capsys, *words, *given)
        assert code == 2
        assert re.search(expected, errors), errors
        assert len(errors.splitlines()) == 1


def other(root, classes=("dark", "grey", "light"), **options):
    return {"data": str(make_folder(root / "other", classes=classes, count=6, size=(40, 40))), **options}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: other(root, ("dark", "light")), "same classes; this one has 2, .* has others \\(3\\)"),
        (lambda root: {"mean": [0.5], "std": [0.25]}, "of images with 1 channels; .* takes 3"),
        (lambda root: {"split_seed": 7}, "knows none of the images held out here; .* was trained on \\d+ of 6"),
    ],
)
def test_unsuitable_teachers_are_refused(teacher, tmp_path, change, expected):
    flags = {**STUDENT, "data": teacher.settings.data, "distil_from": str(teacher.path), **change(tmp_path)}
    with pytest.raises(UserError, match=expected) as error:
        ew.train(compose(None, flags=flags), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_classes_in_another_order_are_refused(teacher, splits, tmp_path):
    settings = compose(None, flags={**STUDENT, "distil_from": str(teacher.path), "data": teacher.settings.data})
    turned = splits._replace(classes=splits.classes[::-1])
    with pytest.raises(UserError, match=r"same classes; this one has 3, .* has them in another order"):
        find_teacher(settings, tmp_path, turned, torch.device("cpu"))


def test_a_teacher_tested_on_what_is_trained_on_here_is_refused(teacher, splits, tmp_path):
    settings = compose(None, flags={**STUDENT, "distil_from": str(teacher.path), "data": teacher.settings.data})
    more = replace(splits.train, indices=torch.cat([splits.train.indices, splits.test.indices[:2]]).sort().values)
    with pytest.raises(UserError, match=f"test images are not trained on here; 2 of {len(splits.test)} of"):
        find_teacher(settings, tmp_path, splits._replace(train=more), torch.device("cpu"))


def test_a_teacher_whose_images_are_gone_is_taken_only_if_the_split_is_the_same(teacher, photos, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "moved")
    flags = {**STUDENT, "distil_from": str(teacher.path), "data": str(moved)}
    one, another = (compose(None, flags={**flags, "split_seed": seed}) for seed in (0, 7))
    hidden = photos.rename(photos.with_name("hidden"))
    try:
        find_teacher(one, tmp_path, load_splits(one), torch.device("cpu"))
        with pytest.raises(
            UserError, match=r"to find which images .* was trained on, to tell them from these; .* nothing is now"
        ):
            find_teacher(another, tmp_path, load_splits(another), torch.device("cpu"))
    finally:
        hidden.rename(photos)


def test_a_teacher_without_a_checkpoint_is_refused(teacher, splits, tmp_path):
    theirs = shutil.copytree(teacher.path, tmp_path / "teacher")
    shutil.rmtree(theirs / "checkpoints")
    settings = compose(None, flags={**STUDENT, "distil_from": str(theirs), "data": teacher.settings.data})
    with pytest.raises(UserError, match=r"expected a trained run at .*teacher; it has no checkpoint yet"):
        find_teacher(settings, tmp_path / "run", splits, torch.device("cpu"))
