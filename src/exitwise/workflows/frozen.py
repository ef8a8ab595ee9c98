"""Heads on a backbone that is run no more: in place of the network and its images, what was kept of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitwise.data import Split, TrainingBatches
from exitwise.errors import Interrupted
from exitwise.evaluation.collect import share_of, together
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_outputs
from exitwise.exiting.outputs import Outputs
from exitwise.kernels.inputs import Inputs, laid_out
from exitwise.methods import Uniform
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.processes.signals import StopRequest
from exitwise.settings.schema import Settings
from exitwise.training.fitting import fit_heads
from exitwise.training.kept import Kept, keep
from exitwise.training.on_kept import HeadsOnKept, KeptBatches
from exitwise.training.trainer import Reporter


class OnKept(NamedTuple):
    """The heads as a network, training batches for it, and a function that gives its outputs on the calibration
    images."""

    model: HeadsOnKept
    batches: KeptBatches
    outputs: Callable[[], Outputs]


def run_once(
    model: StagedModel,
    batches: TrainingBatches,
    calibration: Split,
    settings: Settings,
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter,
) -> OnKept:
    """Run the backbone over the training images, once for each pass that is kept, and over the calibration images.

    Epochs are those of a training that runs the backbone each time, image by image, but for their augmentation, which
    is that of the epochs whose passes were kept.

    Args:
        model: with a frozen backbone.
        batches: of the training images, in order.
        calibration: images to evaluate on.
        settings: of the run.
        device: where the network lies.
        ranks: the processes that train together; each runs its share, and keeps all.
        reporter: who watches.

    Raises:
        Interrupted: after SIGTERM or SIGINT, at the next batch.
    """
    reporter.on_start(str(batches))
    kept = _keep_training(model, batches, range(settings.kept_passes), model.exits, settings, device, ranks, reporter)
    share, sharing = share_of(calibration, ranks)
    with StopRequest() as stop:
        total = -(-len(share) // EVALUATION_BATCH)
        pairs = _watched(share.batches(EVALUATION_BATCH, settings.workers), total, ALONE, stop, settings, reporter)
        held_out = keep(model, pairs, model.exits, device, **_how(settings))
    alone = HeadsOnKept(model, kept)

    def outputs() -> Outputs:
        return together(collect_outputs(alone, held_out.batches(EVALUATION_BATCH, device), device), sharing)

    rows = torch.arange(len(kept)).view(settings.kept_passes, -1)
    return OnKept(
        alone,
        KeptBatches(kept, rows, settings.batch_size, settings.seed, device, ranks.rank, ranks.size),
        outputs,
    )


REFIT_EPOCHS, REFIT_DISTIL = 20, 0.5
"""Of the early exits after a joint training, on what was kept; measured in benchmarks/finetune.py."""


def refit(
    model: StagedModel,
    train: Split,
    settings: Settings,
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter,
) -> None:
    """Fit the early exits of a trained network anew, to their best epoch, in part to the last exit's answers.

    All else stays as it is, bit for bit.

    Args:
        model: changed in place; no part of it is frozen.
        train: the training images.
        settings, device, ranks, reporter: as for :func:`run_once`.

    Raises:
        Interrupted: after SIGTERM or SIGINT; exits may have been changed.
    """
    batches = TrainingBatches(
        train, settings.batch_size, settings.seed, device, settings.workers, ranks.rank, ranks.size, in_order=True
    )
    epochs = range(settings.epochs, settings.epochs + settings.kept_passes)
    kept = _keep_training(model, batches, epochs, model.exits - 1, settings, device, ranks, reporter)
    fit_heads(model, kept, Uniform(), epochs=REFIT_EPOCHS, distil=REFIT_DISTIL, seed=settings.seed, device=device)
    ranks.broadcast(list(model.state_dict().values()))


def _keep_training(
    model: StagedModel,
    batches: TrainingBatches,
    epochs: Sequence[int],
    heads: int,
    settings: Settings,
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter,
) -> Kept:
    """Keep what heads need of the training images, augmented as in these epochs."""
    sampler = batches.sampler
    model.to(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)

    def epoch(number: int) -> Iterable[tuple[Inputs, Tensor]]:
        sampler.epoch, sampler.start = number, 0
        return batches

    dealt = ranks if sampler.dealt(0) else ALONE
    with StopRequest() as stop, torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        total = len(epochs) * sampler.batches_per_epoch
        pairs = _watched(chain.from_iterable(map(epoch, epochs)), total, ranks, stop, settings, reporter)
        return keep(model, pairs, heads, device, **_how(settings), ranks=dealt)


def _watched(
    pairs: Iterable[tuple[Inputs, Tensor]],
    total: int,
    ranks: Ranks,
    stop: StopRequest,
    settings: Settings,
    reporter: Reporter,
) -> Iterator[tuple[Inputs, Tensor]]:
    form = torch.channels_last if settings.channels_last else torch.contiguous_format
    for done, (inputs, targets) in enumerate(pairs):
        if number := ranks.max_over(stop.signal or 0):
            raise Interrupted(signal.Signals(number))
        reporter.on_keep(done, total)
        yield laid_out(inputs, form), targets


def _how(settings: Settings) -> dict[str, Any]:
    return {"keep_in": settings.keep_in, "dtype": torch.float16 if settings.keep_as == "float16" else None}
