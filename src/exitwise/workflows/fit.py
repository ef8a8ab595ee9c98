"""Fit new exits on a network that is trained already, which stays as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from exitwise.data.loaders import pairs_of
from exitwise.errors import DataError, UserError
from exitwise.models.staged import StagedModel, check_staged
from exitwise.shown import Shown, percent
from exitwise.training.kept import fit_heads, keep

if TYPE_CHECKING:
    from rich.console import RenderableType


LEAST_SAMPLES = 10
"""Of which one is held out."""


@dataclass(frozen=True)
class ExitsFitted(Shown):
    """Early exits that were fitted.

    Attributes:
        accuracies: of each early exit, on the tenth of the samples that chose its best epoch.
        epochs: that epoch, from 1.
        samples: how many there were, each pass over the loader counted.
        kept_bytes: memory of what was kept.
        seconds: for running the network over the loader, and for training the exits.
    """

    accuracies: list[float]
    epochs: list[int]
    samples: int
    kept_bytes: int
    seconds: tuple[float, float]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        table = Table(title=f"Early exits, fitted on {self.samples} samples")
        for name in ("exit", "accuracy on a held-out tenth", "best epoch"):
            table.add_column(name, justify="right")
        for number, (accuracy, epoch) in enumerate(zip(self.accuracies, self.epochs, strict=True), start=1):
            table.add_row(str(number), percent(accuracy), str(epoch))
        keeping, training = self.seconds
        times = f"{keeping:.1f} s to run the network, {training:.1f} s to train the exits"
        return Group(table, f"{times}; {self.kept_bytes / 2**20:.0f} MiB kept")


def fit_exits(
    model: StagedModel,
    train: Iterable[Any],
    *,
    passes: int = 1,
    epochs: int = 40,
    batch_size: int = 128,
    lr: float = 3e-3,
    distil: float = 0.0,
    seed: int = 0,
) -> ExitsFitted:
    """Train the early exits of a network; all else, the last exit included, stays as it is, bit for bit.

    The network runs once over the loader, in eval mode, and what each exit needs of a sample is kept in memory. Then
    the exits train on what was kept, with AdamW and a cosine schedule, each to its own best epoch on a held-out tenth.

    Args:
        model: from :func:`~exitwise.add_exits`, on the device to use.
        train: batches as (inputs, targets, ...) or mappings with an image and a label: what the network was trained on.
        passes: over the loader, for one whose augmentation is random.
        epochs: passes over what was kept.
        batch_size, lr: of the training.
        distil: share of each exit's loss that is the divergence from the last exit's answer, in [0, 1].
        seed: of the order, and of the held-out tenth.

    Raises:
        UserError: for a network without early exits, or settings out of range.
        DataError: for a loader that ends at once, or gives what is no batch of inputs and class indices.
    """
    check_staged(model)
    if model.exits < 2:
        raise UserError(f"expected a network with early exits; got {model.exits} exit")
    for name, value, least in (("passes", passes, 1), ("epochs", epochs, 1), ("batch_size", batch_size, 2)):
        if value < least:
            raise UserError(f"expected {name} of at least {least}; got {value}")
    if not 0 < lr < math.inf:
        raise UserError(f"expected a positive number as lr; got {lr}")
    if not 0 <= distil <= 1:
        raise UserError(f"expected distil as a share from 0 to 1; got {distil}")
    device = next(model.parameters()).device
    start = time.perf_counter()
    pairs = (pairs_of(train, model, "training loader") for _ in range(passes))
    whole = keep(model, chain.from_iterable(pairs), model.exits - 1, device)
    if len(whole.targets) < LEAST_SAMPLES:
        raise DataError(f"expected at least {LEAST_SAMPLES} samples to fit exits on; got {len(whole.targets)}")
    middle = time.perf_counter()
    fitted = fit_heads(
        model, whole, epochs=epochs, batch_size=batch_size, lr=lr, distil=distil, seed=seed, device=device
    )
    seconds = middle - start, time.perf_counter() - middle
    return ExitsFitted(fitted.accuracies, fitted.epochs, len(whole.targets), whole.size, seconds)
