"""The training loop: schedule, half steps, metrics, checkpoints. It knows Method, and no method by name."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from exitwise.data.sampling import EpochBatches, derive_seed
from exitwise.errors import Interrupted, UserError
from exitwise.kernels.channels_last import ChannelsLast
from exitwise.kernels.compiled import is_compiled, uncompiled
from exitwise.kernels.inputs import Inputs, laid_out
from exitwise.kernels.synced_norm import SyncedNorm
from exitwise.methods.base import Method
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.processes.signals import StopRequest
from exitwise.training.average import WeightAverage
from exitwise.training.checkpoint import CheckpointError, random_state, restore_random_state
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.meters import MOST_SKIPPED, Meters, SkippedRow
from exitwise.training.mixing import Mixing
from exitwise.training.samples import WeightSamples
from exitwise.training.schedule import Course, scheduler
from exitwise.training.step import HalfStep, accumulated_step, half_batches, half_step
from exitwise.weighting.lookahead import check_optimizer
from exitwise.weighting.losses import Loss
from exitwise.weighting.passes import Batch

CHECKPOINT_SECONDS = 300
"""The longest time between checkpoints, whatever the length of an epoch."""

LOOK_EVERY = 10
"""Loaded batches between looks at the count of skipped steps, where a look waits for the device."""


class Batches(Protocol):
    """Loaded batches of an epoch on the model's device, each as (inputs, targets); says in a line where they are.

    Attributes:
        sampler: says which epoch and batch come next, and how many there are.
    """

    sampler: EpochBatches

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]: ...


class Reporter(Protocol):
    """Who watches the training. Values are read by it when it wants them, so that nothing waits for the device."""

    def on_start(self, data: str) -> None:
        """Before the first step; ``data`` says where the images are."""

    def on_keep(self, done: int, total: int) -> None:
        """Before the training of heads, after a batch that was kept for it."""

    def on_step(self, iteration: int, total: int, meters: Meters) -> None:
        """After a loaded batch; ``meters`` cover the epoch so far."""

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        """After an epoch, with the rows of metrics so far."""


class Silent:
    """A reporter that says nothing."""

    def on_start(self, data: str) -> None:
        pass

    def on_keep(self, done: int, total: int) -> None:
        pass

    def on_step(self, iteration: int, total: int, meters: Meters) -> None:
        pass

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        pass


@dataclass
class Progress:
    """Where a run stands: loaded batches done in all and in this epoch, rows of past epochs, best score so far, epochs
    since then, and whether what came after the last epoch is done."""

    iteration: int = 0
    epoch: int = 0
    batch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -1.0
    stale: int = 0
    concluded: bool = False


class Trainer:
    """Trains a network with a method; resumes where a former trainer of the same folder stopped.

    Args:
        model, optimizer, method: what is trained, and how. The model lies on the device to train on.
        batches: of the training split, on the model's device.
        evaluate: accuracy of each exit on the calibration split; their mean picks the best epoch.
        epochs: passes over the training split.
        warmup: share of the training in which learning rates rise to their highest.
        course: how they go from there (:func:`~exitwise.training.schedule.scheduler`).
        patience: end after so many epochs without a better one; None: train to the end.
        max_iterations: end after so many loaded batches (the schedule then ends there too).
        loss: what exits learn from; None: the labels.
        teacher: gives the logits of another network, for a loss that learns from it, of the inputs of a loaded batch;
            it runs without gradients, and under autocast where the network does.
        checkpoints: where to save and resume; None: neither.
        checkpoint_every: loaded batches between checkpoints, besides one after each epoch and every 5 minutes.
        reporter: who watches.
        channels_last: keep images and network in channels-last format.
        bf16: run the network's passes under autocast to bfloat16. Weights, losses, the look-ahead and forward mode stay
            in float32.
        ranks: the processes that train together; the first of them writes.
        sync_batchnorm: take BatchNorm's statistics over the images of all of them.
        accumulate: passes in which each half batch is trained on (see :func:`accumulated_step`).
        ema: above 0: evaluate and keep a running average of the weights, of which each loaded batch keeps that share
            (:class:`~exitwise.training.average.WeightAverage`).
        clip: the largest norm of gradients; larger ones are scaled down. Not for methods that look ahead.
        mixing: mixes the samples of each train half; meta halves stay as they are. Not with a teacher.
    """

    def __init__(
        self,
        model: StagedModel,
        optimizer: Optimizer,
        method: Method,
        batches: Batches,
        evaluate: Callable[[], list[float]],
        *,
        epochs: int,
        max_iterations: int | None = None,
        warmup: float = 0.0,
        course: Course = "cosine",
        patience: int | None = None,
        loss: Loss | None = None,
        teacher: Callable[[Inputs], Tensor] | None = None,
        checkpoints: CheckpointFolder | None = None,
        checkpoint_every: int | None = None,
        reporter: Reporter | None = None,
        channels_last: bool = False,
        bf16: bool = False,
        ranks: Ranks = ALONE,
        sync_batchnorm: bool = False,
        accumulate: int = 1,
        ema: float = 0.0,
        clip: float | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        check_optimizer(optimizer)
        method.check(model.exits)
        self.bf16 = bf16
        self.ranks = ranks
        self.sync_batchnorm = sync_batchnorm and ranks.size > 1
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.format)
        self.optimizer = optimizer
        self.method = method
        self.batches = batches
        self.evaluate = evaluate
        self.total = epochs * batches.sampler.batches_per_epoch
        if max_iterations is not None:
            self.total = min(self.total, max_iterations)
        self.loss = loss
        self.teacher = teacher
        self.accumulate = accumulate
        self.clip = clip
        self.patience = patience
        self.mixing = mixing
        if clip is not None and method.options.looks_ahead:
            raise UserError(f"{type(method).__name__} looks one step ahead, which knows no clipping; got clip {clip}")
        self.checkpoints = checkpoints
        self.checkpoint_every = checkpoint_every
        self.reporter = reporter or Silent()
        self.progress = Progress()
        self.saved = time.monotonic()
        self.device = next(model.parameters()).device
        self.meters = Meters(model.exits, self.device)
        self.skipped_row = SkippedRow(self.device)
        self.stop = StopRequest()
        self.samples = WeightSamples(model.exits, self.device)
        self.average = WeightAverage(self.model, ema) if ema else None
        scheduled = [optimizer] if method.optimizer is None else [optimizer, method.optimizer]
        self.schedules = [scheduler(each, course, self.total, warmup) for each in scheduled]

    @property
    def done(self) -> bool:
        """Return whether all iterations have been made, or as many as it takes, and the last epoch evaluated."""
        return (self.progress.iteration >= self.total or self.out_of_patience) and self.progress.batch == 0

    @property
    def out_of_patience(self) -> bool:
        """Return whether as many epochs as are allowed were no better than an earlier one."""
        return self.patience is not None and self.progress.stale >= self.patience

    def fit(self) -> list[dict[str, float]]:
        """Train to the end; returns one row of metrics per epoch.

        Raises:
            Interrupted: after SIGTERM or SIGINT, once the step at hand is done and saved; a second one acts at once.
        """
        done = self.progress.iteration
        self.reporter.on_start(f"{self.batches}{f'; continued at step {done} of {self.total}' if done else ''}")
        with self.stop:
            try:
                while not self.done:
                    self._epoch()
            except Interrupted:
                self._save("last")
                raise
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal)
        return self.progress.history

    def resume(self) -> bool:
        """Continue from the latest checkpoint that is intact; False if there has been none.

        Raises:
            CheckpointError: if none is intact, or it is of another model, method or optimizer.
        """
        found = self.checkpoints.load("last") if self.checkpoints else None
        if found is None:
            return False
        try:
            self.load_state_dict(found.tree)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{found.path} is a checkpoint of another model, method or optimizer") from error
        return True

    def _epoch(self) -> None:
        progress = self.progress
        self.model.train()
        sampler = self.batches.sampler
        sampler.epoch, sampler.start = progress.epoch, progress.batch
        if progress.iteration < self.total:  # else a former run was stopped while it evaluated
            batches = iter(self.batches)
            while (batch := self._next(batches)) is not None:
                self.train_on(*batch)
                if progress.iteration == self.total:
                    break
                if self.ranks.max_over(int(self._checkpoint_is_due())):
                    self._save("last")
        self._end_epoch()

    def _next(self, batches: Iterator[tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor] | None:
        """Return the next loaded batch, None at the end, unless a signal has come to this process or to another one."""
        batch = None
        try:
            with self.stop.at_once():
                batch = next(batches, None)
        except Interrupted:
            if self.ranks.size == 1:
                raise
        if number := self.ranks.max_over(self.stop.signal or 0):
            raise Interrupted(signal.Signals(number))
        return batch

    def _checkpoint_is_due(self) -> bool:
        if self.checkpoint_every is not None and self.progress.iteration % self.checkpoint_every == 0:
            return True
        return time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def train_on(self, inputs: Inputs, targets: Tensor) -> None:
        """One loaded batch on the model's device: schedule, a step on each half, metrics."""
        progress = self.progress
        for schedule in self.schedules:
            schedule.step_update(progress.iteration)
        share = progress.iteration / self.total
        self.method.begin(progress.batch, share)
        if self.model.flow is not None:
            self.model.flow.progress = share
        inputs = laid_out(inputs, self.format)
        ranks = self.ranks if self.batches.sampler.dealt(progress.batch) else self.ranks.repeated()
        for half, (train, meta) in enumerate(half_batches(inputs, targets, self._taught(inputs))):
            if self.mixing is not None:
                train = self.mixing(train, progress.epoch, progress.batch, half)
            with self._precision(), self._norm(ranks):
                step = self._half_step(train, meta, ranks)
            self.meters.add(step)
            self.skipped_row.add(step)
            self.samples.add(step)
        if self.average is not None:
            self.average.update()
        progress.iteration += 1
        progress.batch += 1
        if self.device.type == "cpu" or progress.iteration % LOOK_EVERY == 0:
            self._look_at_skipped()
        self.reporter.on_step(progress.iteration, self.total, self.meters)

    def _half_step(self, train: Batch, meta: Batch, ranks: Ranks) -> HalfStep:
        training = self.model, self.optimizer, self.method
        if self.accumulate > 1:
            return accumulated_step(*training, train, self.accumulate, self.loss, ranks, self.clip)
        return half_step(*training, train, meta, self.progress.batch, self.loss, ranks, self.clip)

    def _taught(self, inputs: Inputs) -> Tensor | None:
        """Return what the teacher says of a loaded batch, whose augmented images it sees as the network does."""
        if self.teacher is None:
            return None
        with torch.no_grad(), self._precision():
            return self.teacher(inputs)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _norm(self, ranks: Ranks) -> AbstractContextManager[Any]:
        if self.sync_batchnorm:
            return SyncedNorm(ranks)
        eager = self.format == torch.channels_last and not is_compiled(self.model)
        return ChannelsLast() if eager else nullcontext()

    def _look_at_skipped(self) -> None:
        if self.skipped_row.at_end:
            raise UserError(
                f"{MOST_SKIPPED} steps in a row had a loss or gradient that is not finite and were skipped, up to "
                f"iteration {self.progress.iteration}; a lower lr may help, or the data's mean and std are wrong"
                + (" (earlier checkpoints are kept)" if self.checkpoints else "")
            )

    def _end_epoch(self) -> None:
        progress = self.progress
        self._look_at_skipped()
        # Of several processes, the others would wait for the outputs of one that stops at once.
        alone = self.ranks.size == 1
        with self.stop.at_once() if alone else nullcontext(), self._kept(), uncompiled():
            accuracies = self.evaluate()
        row = {"epoch": progress.epoch + 1, "iteration": progress.iteration, **self.meters.means()}
        row["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        row |= _by_exit(accuracies)
        progress.history.append(row)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self.samples.end_epoch(progress.epoch)
        self.meters = Meters(self.model.exits, self.device)
        score = sum(accuracies) / len(accuracies)
        improved = score > progress.best
        progress.best = max(score, progress.best)
        progress.stale = 0 if improved else progress.stale + 1
        if improved:
            self._save("best")
        self._save("last")
        self.reporter.on_epoch(progress.history)

    def _kept(self) -> AbstractContextManager[None]:
        """Let the network have the weights that are kept of it, within."""
        return nullcontext() if self.average is None else self.average.in_place()

    def adopt_average(self) -> None:
        """Let the network have the average of its weights for good, where there is one."""
        if self.average is not None:
            self.average.adopt()
            self.average = None

    def conclude(self) -> None:
        """Take the network as it is now, changed after the last epoch, as the result of that epoch, and as the best."""
        with uncompiled():
            accuracies = self.evaluate()
        self.progress.history[-1] |= _by_exit(accuracies)
        self.progress.concluded = True
        self._save("best")
        self._save("last")
        self.reporter.on_epoch(self.progress.history)

    def _save(self, kind: str) -> None:
        if self.checkpoints is not None:
            with self._kept() if kind == "best" else nullcontext():
                tree = self.state_dict() if kind == "last" else {"model": self.model.state_dict()}
                if self.ranks.rank == 0:
                    self.checkpoints.save(kind, self.progress.iteration, tree)
            self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "meters": self.meters.state_dict(),
            "skipped_row": self.skipped_row.state_dict(),
            "samples": self.samples.state_dict(),
            **({"average": self.average.state_dict()} if self.average is not None else {}),
            "random": {name: self.ranks.gather(state[None])[0] for name, state in random_state().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.meters.load_state_dict(state["meters"])
        if row := state.get("skipped_row", state.get("patience")):  # its former name; not in the first checkpoints
            self.skipped_row.load_state_dict(row)
        if "samples" in state:  # checkpoints made before weights were recorded have none
            self.samples.load_state_dict(state["samples"])
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])
        states = {name: rows.view(-1, rows.shape[-1]) for name, rows in state["random"].items()}
        if len(states["cpu"]) == self.ranks.size:
            restore_random_state({name: rows[self.ranks.rank].clone() for name, rows in states.items()})
        else:  # saved by another number of processes
            torch.manual_seed(derive_seed(torch.initial_seed(), self.progress.iteration))


def _by_exit(accuracies: list[float]) -> dict[str, float]:
    return {f"calibration_accuracy_{k}": value for k, value in enumerate(accuracies, start=1)}
