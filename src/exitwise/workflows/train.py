"""Train what the settings say, into a run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exitwise.data import Splits
from exitwise.data.ledger import Skipped
from exitwise.data.sampling import derive_seed
from exitwise.errors import UserError
from exitwise.evaluation.collect import collect_together
from exitwise.exiting.outputs import Outputs, anytime
from exitwise.methods import build_loss
from exitwise.models import check_model_name
from exitwise.models.staged import StagedModel
from exitwise.processes.distributed import first, joined, launched, own_device
from exitwise.processes.ranks import Ranks
from exitwise.runs import build
from exitwise.runs.build import pick_device
from exitwise.runs.enough import check_enough
from exitwise.runs.folder import Resume, Run, as_built, check_vacant
from exitwise.runs.records.teacher import TEACHER
from exitwise.runs.teacher import Teacher, find_teacher
from exitwise.settings.schema import Settings
from exitwise.shown import Shown, percent
from exitwise.storage.lock import check_unlocked, locked
from exitwise.tracking import Tracking
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.compiled import check_compiler
from exitwise.training.flags import training_flags
from exitwise.training.meters import Meters
from exitwise.training.mixing import Mixing
from exitwise.training.trainer import Batches, Reporter, Silent, Trainer
from exitwise.workflows.frozen import refit, run_once

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class TrainingResult(Shown):
    """A finished training.

    Attributes:
        run: its folder.
        history: a row of metrics per epoch.
        resumed: whether it continued an earlier one.
        splits: its data.
        ended_early: whether it ended as ``patience`` has it.
    """

    run: Run
    history: list[dict[str, float]]
    resumed: bool
    splits: Splits
    ended_early: bool = False

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        table = Table(title=f"Last epoch, calibration {self.run.settings.noun}")
        row = self.history[-1].items()
        accuracies = [value for key, value in row if key.startswith("calibration_accuracy_")]
        for number, _ in enumerate(accuracies, start=1):
            table.add_column(f"exit {number}", justify="right")
        table.add_row(*map(percent, accuracies))
        return table


def train(
    settings: Settings,
    out: str | Path,
    reporter: Reporter | None = None,
    *,
    splits: Splits | None = None,
    resume: Resume = "auto",
) -> TrainingResult:
    """Train as the settings say, into a run folder; continues what an earlier call with the same settings began.

    Processes that ``torchrun`` has started train together; the first of them writes.

    Args:
        settings: what to train on what, and how.
        out: the run folder.
        reporter: who watches.
        splits: the data that the settings name, where it is loaded already.
        resume: ``auto``: continue the run that is there, if any; ``never``: refuse to; ``extend``: continue the run
            that is there for more epochs than it was to have.

    Raises:
        ValueError: for unsuitable settings or data, or a folder that holds something else or that another process
            trains in; nothing is written then.
        Interrupted: after SIGTERM or SIGINT, with all steps saved.
        OSError: if a checkpoint cannot be written; those before it are kept.
    """
    out = Path(out)
    check_model_name(settings.model)
    device = own_device(pick_device(settings.device))
    if settings.precision == "tf32" and device.type != "cuda":
        raise UserError(f"precision tf32 is a GPU's; got device {device.type} (float32 and bf16 run everywhere)")
    if settings.compile:
        check_compiler(device)
    settings.options.check(settings.surroundings(processes=launched()[1]))
    if settings.place_by == "latency" and launched()[1] > 1:
        raise UserError(
            f"places by latency are measured by one process; got {launched()[1]} (exits_at takes places that "
            "`exitwise models --exits NAME --place-by latency` shows)"
        )
    tracking = Tracking(settings.track or ())
    with joined(device, settings.process_timeout, together=settings.allocation == "global") as ranks:
        _check_same(settings, ranks)
        with first(ranks):
            if ranks.rank == 0:
                check_vacant(out, settings, resume)
                check_unlocked(out)
            splits = splits or build.load_splits(settings, max_broken=settings.max_broken)
            check_enough(splits, settings)
            teacher = None if settings.distil_from is None else find_teacher(settings, out, splits, device)
        with training_flags(tf32=settings.precision == "tf32", compiled=settings.compile), tracking:
            return _train(settings, out, reporter, splits, teacher, resume, device, ranks, tracking)


def _train(
    settings: Settings,
    out: Path,
    reporter: Reporter | None,
    splits: Splits,
    teacher: Teacher | None,
    resume: Resume,
    device: torch.device,
    ranks: Ranks,
    tracking: Tracking,
) -> TrainingResult:
    parts = build.build(as_built(settings, out), splits, device, ranks)
    network: StagedModel = parts.model
    batches: Batches = parts.batches
    method, optimizer = parts.method, parts.optimizer
    learned = method.optimizer.param_groups if method.optimizer else []
    ranks.broadcast([*network.state_dict().values(), *(param for group in learned for param in group["params"])])
    if ranks.rank > 0:
        torch.manual_seed(derive_seed(settings.seed, ranks.rank))  # dropout of its own
    with locked(out) if ranks.rank == 0 else nullcontext():
        with first(ranks):
            run = Run.create(out, settings, splits, sys.argv, resume) if ranks.rank == 0 else Run(out)
        if ranks.rank == 0:
            run.follow(splits.ledger)
            run.write_network(parts.model)
            if teacher is not None:
                TEACHER.write(out, teacher.record)

        if ranks.rank == 0:
            tracking.start(out, settings.stated())
            reporter = _MetricsWriter(run, reporter, tracking)
        else:
            reporter = Silent()
        collected: Callable[[], Outputs] = partial(
            collect_together, network, splits.calibration, device, settings.workers, ranks
        )
        if frozen := settings.regime == "heads":
            network, batches, collected = run_once(
                network, parts.batches, splits.calibration, settings, device, ranks, reporter
            )

        def evaluate() -> list[float]:
            outputs = collected()
            splits.ledger.skip(_of_all(splits.ledger.skipped.values(), ranks))
            return anytime(outputs)

        mixes = settings.mixup > 0 or settings.cutmix > 0
        counts = splits.train.targets.bincount(minlength=len(splits.classes)).tolist()
        trainer = Trainer(
            network,
            optimizer,
            method,
            batches,
            evaluate,
            epochs=settings.epochs,
            max_iterations=settings.max_iterations,
            warmup=settings.warmup,
            course=settings.lr_schedule,
            patience=settings.patience,
            loss=build_loss(settings.loss, settings.options_of("loss"), settings.label_smoothing, counts),
            teacher=None if teacher is None else teacher.answer,
            checkpoints=CheckpointFolder(run.checkpoints.root, settings.keep_checkpoints),
            checkpoint_every=settings.checkpoint_every,
            reporter=reporter,
            channels_last=settings.channels_last and not frozen,
            bf16=settings.precision == "bf16",
            ranks=ranks,
            sync_batchnorm=settings.sync_batchnorm,
            accumulate=settings.accumulate,
            ema=settings.ema,
            clip=settings.clip,
            mixing=Mixing(settings.mixup, settings.cutmix, len(splits.classes), settings.seed) if mixes else None,
        )
        resumed = trainer.resume()
        history = trainer.fit()
        if settings.refit_heads and network.exits > 1 and not trainer.progress.concluded:
            trainer.adopt_average()
            refit(parts.model, splits.train, settings, device, ranks, reporter)
            trainer.conclude()
        if ranks.rank == 0:
            run.write_metrics(history)  # also where a former call was killed between its last checkpoint and this
            run.write_weights(trainer.samples.rows())
    return TrainingResult(run, history, resumed, splits, trainer.out_of_patience)


def _check_same(settings: Settings, ranks: Ranks) -> None:
    """Raise UserError unless all processes have the settings of the first, but for those of their machine."""
    ours = settings.model_dump(mode="json", exclude={"data_root", "workers"})
    for rank, theirs in enumerate(_told(ours, ranks)):
        other = [f"{key} {ours[key]!r} and {value!r}" for key, value in theirs.items() if value != ours[key]]
        if other:
            raise UserError(f"expected the same settings in all processes; got {', '.join(other)} (rank {rank})")


def _of_all(skipped: Iterable[Skipped], ranks: Ranks) -> list[Skipped]:
    """Return the images that any of the processes has skipped."""
    return [Skipped(*each) for theirs in _told(list(skipped), ranks) for each in theirs]


def _told(content: Any, ranks: Ranks) -> list[Any]:
    """Return what each process says, in plain values, in the order of ranks."""
    line = json.dumps(content) + "\n"
    everyone, _ = ranks.gather(torch.tensor(list(line.encode()), dtype=torch.uint8))
    return [json.loads(each) for each in bytes(everyone.tolist()).splitlines()]


class _MetricsWriter:
    """Passes reports on, to trackers too, and keeps metrics.csv up to date."""

    def __init__(self, run: Run, reporter: Reporter | None, tracking: Tracking) -> None:
        self.run = run
        self.reporter = reporter
        self.tracking = tracking

    def on_start(self, data: str) -> None:
        if self.reporter is not None:
            self.reporter.on_start(data)

    def on_keep(self, done: int, total: int) -> None:
        if self.reporter is not None:
            self.reporter.on_keep(done, total)

    def on_step(self, iteration: int, total: int, meters: Meters) -> None:
        self.tracking.step(iteration, meters.means)
        if self.reporter is not None:
            self.reporter.on_step(iteration, total, meters)

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        self.run.write_metrics(history)
        self.tracking.epoch(history[-1])
        if self.reporter is not None:
            self.reporter.on_epoch(history)
