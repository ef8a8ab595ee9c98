"""Heads on a frozen backbone: what a training of them takes in place of the network and its images."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitwise.data import Split, TrainingBatches
from exitwise.errors import Interrupted
from exitwise.evaluation.collect import share_of, together
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, collect_outputs
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.processes.signals import StopRequest
from exitwise.settings.schema import Settings
from exitwise.training.kept import keep
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
    passes, sampler = settings.kept_passes, batches.sampler
    form = torch.channels_last if settings.channels_last else torch.contiguous_format
    model.to(memory_format=form)
    share, sharing = share_of(calibration, ranks)
    how: dict[str, Any] = {
        "keep_in": settings.keep_in,
        "dtype": torch.float16 if settings.keep_as == "float16" else None,
    }

    def epoch(number: int) -> Iterable[tuple[Tensor, Tensor]]:
        sampler.epoch = number
        return batches

    def watched(pairs: Iterable[tuple[Tensor, Tensor]], total: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        for done, (images, targets) in enumerate(pairs):
            if number := ranks.max_over(stop.signal or 0):
                raise Interrupted(signal.Signals(number))
            reporter.on_keep(done, total)
            yield images.contiguous(memory_format=form), targets

    with StopRequest() as stop:
        training = chain.from_iterable(map(epoch, range(passes)))
        dealt = ranks if sampler.dealt(0) else ALONE
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            pairs = watched(training, passes * sampler.batches_per_epoch, ranks)
            kept = keep(model, pairs, model.exits, device, **how, ranks=dealt)
        pairs = watched(share.batches(EVALUATION_BATCH, settings.workers), -(-len(share) // EVALUATION_BATCH), ALONE)
        held_out = keep(model, pairs, model.exits, device, **how)
    alone = HeadsOnKept(model, kept)

    def outputs() -> Outputs:
        return together(collect_outputs(alone, held_out.batches(EVALUATION_BATCH, device), device), sharing)

    rows = torch.arange(len(kept)).view(passes, -1)
    return OnKept(
        alone,
        KeptBatches(kept, rows, settings.batch_size, settings.seed, device, ranks.rank, ranks.size),
        outputs,
    )
