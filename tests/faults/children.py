"""Trainings in processes of their own, to be hurt: they say where they are, and wait there until told to go on.

They are forked from a server that has imported everything, so that starting one takes no seconds.
"""

import math
import os
import signal
import time
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context, set_start_method
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from exitwise.models.staged import Stage, StagedModel
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["exitwise.cli", "exitwise.workflows.train", "exitwise.data.sources.digits"])

WEIGHTED = ["--method", "meta-weighted", "--wpn-hidden", "16"]
SHARED = ["--method", "meta-weighted-shared", "--wpn-hidden", "16"]
TINY = ["--recipe", "digits", "--device", "cpu", "--checkpoint-every", "2"]
TINY += ["--batch-size", "20", "--max-iterations", "12"]
FEW = [*TINY, "--test-fraction", "0.8", "--calibration-fraction", "0.16"]  # 4 batches to an epoch
DIGITS = [*FEW, *WEIGHTED]


class Moment(NamedTuple):
    """Where a training is: ``step`` (done; its number), ``evaluate`` or ``save`` (each write, flush and rename)."""

    kind: str
    number: int


class Child:
    """``exitwise train`` in a process of its own.

    Attributes:
        steps: loaded batches that it has trained on, as far as it was followed.
    """

    def __init__(self, out, *flags, log=""):
        self.log = Path(f"{out}{log}.log")
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_train, args=([*map(str, flags), "--out", str(out)], self.log, theirs))
        self.process.start()
        theirs.close()
        self.steps = 0

    def follow(self, until=lambda moment: False, seconds=None):
        """The moment it waits at, by that condition; None if it ended, or, while it goes on, after some seconds."""
        while seconds is None or self.pipe.poll(seconds):
            try:
                moment = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                return None
            if moment.kind == "step":
                self.steps = moment.number
            if until(moment):
                return moment
            self.go()
        return None

    def go(self):
        with suppress(BrokenPipeError):
            self.pipe.send(None)

    def signal(self, number):
        """To the training and its reading workers, as a terminal and batch systems do; to the workers first."""
        pid = self.process.pid
        for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(each), number)
            time.sleep(0.05)  # enough for it to be gone
        os.kill(pid, number)

    def end(self):
        """Let it go on to its end; its exit code (negative: the signal that ended it)."""
        self.follow()
        self.process.join()
        return self.process.exitcode

    @property
    def errors(self):
        """What it wrote to standard error."""
        return self.log.with_suffix(".err").read_text()


def _train(flags, log, pipe):
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    set_start_method(get_all_start_methods()[0], force=True)  # reading workers start as they would without a server
    for descriptor, path in ((1, log), (2, log.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    _announce_moments(pipe)
    from exitwise.cli import main

    main(["train", *flags])


def tiny_network(settings, classes, pretrained=False):
    """Two exits and BatchNorm, quick enough to be trained some hundred times; takes the place of ``build_model``."""
    channels, side = len(settings.mean), settings.image_size

    def stage(inputs, outputs):
        body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
        return Stage(body, nn.Sequential(nn.Flatten(), nn.Linear(outputs * side * side, classes)))

    return StagedModel([stage(channels, 4), stage(4, 8)], classes, (channels, side, side))


def _announce_moments(pipe):
    from exitwise.evaluation import collect
    from exitwise.runs import build
    from exitwise.training import checkpoint
    from exitwise.training.trainer import Trainer

    def wait_at(kind, number):
        pipe.send(Moment(kind, number))
        pipe.recv()

    def before(owner, name, kind):
        original = getattr(owner, name)

        def announced(*args, **options):
            wait_at(kind, 0)
            return original(*args, **options)

        setattr(owner, name, announced)

    build.build_model = tiny_network
    train_on = Trainer.train_on

    def announced_step(trainer, *batch):
        train_on(trainer, *batch)
        wait_at("step", trainer.progress.iteration)

    Trainer.train_on = announced_step
    before(collect, "collect", "evaluate")
    for name in ("save_file", "_flush", "remove_checkpoint"):
        before(checkpoint, name, "save")
    before(Path, "rename", "save")


def newest(out):
    """The tree of the newest checkpoint to resume from, which must be intact."""
    return load_checkpoint(CheckpointFolder(Path(out) / "checkpoints").latest("last"))


def debris(out):
    """What is in a run folder that no one should have left there."""
    return [path for path in Path(out).rglob(".*") if path.name != ".lock"]


def same(first, second):
    """Whether two runs ended with the same bits, in weights, optimizers, method and metrics."""
    trees, metrics = zip(
        *((newest(out), (Path(out) / "metrics.csv").read_bytes()) for out in (first, second)), strict=True
    )
    try:
        torch.testing.assert_close(*trees, rtol=0, atol=0)
    except AssertionError:
        return False
    return metrics[0] == metrics[1] and not debris(first)


def all_finite(tree):
    """Whether no number in a checkpoint is infinite or none."""
    if isinstance(tree, torch.Tensor):
        return bool(tree.isfinite().all())
    if isinstance(tree, (dict, list)):
        return all(map(all_finite, tree.values() if isinstance(tree, dict) else tree))
    return not isinstance(tree, float) or math.isfinite(tree)
