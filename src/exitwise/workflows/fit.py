"""Fit new exits on a network that is trained already, which stays as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exitwise.budgets import check_whole
from exitwise.catalogue.methods import find_method
from exitwise.data.fingerprints import noted
from exitwise.data.loaders import pairs_of
from exitwise.data.sampling import SMALLEST_BATCH
from exitwise.errors import DataError, UserError
from exitwise.methods import Method, build_method
from exitwise.models.cascade import Cascade
from exitwise.models.staged import StagedModel, check_staged
from exitwise.shown import Shown, percent
from exitwise.training.fitting import fit_heads
from exitwise.training.kept import keep
from exitwise.training.rows import MEMORY_LIMIT

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
        kept_bytes: size of what was kept.
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
    method: str | Method = "uniform",
    distil: float = 0.0,
    augmented_passes: int = 1,
    epochs: int = 40,
    batch_size: int = 256,
    lr: float = 3e-3,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
    keep_in: str | Path | None = None,
) -> ExitsFitted:
    """Train the early exits of a network; all else, the last exit included, stays as it is, bit for bit.

    The network runs once over the loader, in eval mode, and what each exit needs of a sample is kept. Then the exits
    train on what was kept, with AdamW and a cosine schedule, each to its own best epoch on a held-out tenth.

    Args:
        model: from :func:`~exitwise.add_exits`, on the device to use.
        train: batches as (inputs, targets, ...) or mappings with an image and a label: what the network was trained on.
        method: what each sample's loss counts at each exit: a name that :func:`~exitwise.list_methods` lists, with its
            defaults, or a method, such as ``Uniform([3, 2, 1, 0])`` for a weight per exit, the last one included.
        distil: share of each exit's loss that is the divergence from the last exit's answer, in [0, 1].
        augmented_passes: over the loader, for one whose augmentation is random; all are kept.
        epochs: passes over what was kept.
        batch_size, lr: of the training; each batch is trained on in halves.
        seed: of the order, of the held-out tenth, and of the method's network if it has one.
        dtype: what to keep features as; torch.float16 halves them. None: as the network computes them.
        memory_limit: bytes that are kept in memory; more are kept in a temporary file, which needs no cleaning up.
        keep_in: the folder of that file; None: the system's temporary folder.

    Raises:
        UserError: for a network without early exits, settings out of range, or a full disk.
        DataError: for a loader that ends at once, or gives what is no batch of inputs and class indices.
        Interrupted: after SIGTERM or SIGINT; the exits may have been changed.
    """
    check_staged(model)
    if isinstance(model, Cascade):
        raise UserError("expected a network whose exits are to be fitted; got a cascade (fit its networks one by one)")
    if model.exits < 2:
        raise UserError(f"expected a network with early exits; got {model.exits} exit")
    if isinstance(method, Method):
        method.check(model.exits)
    least = {"augmented_passes": 1, "epochs": 1, "batch_size": SMALLEST_BATCH, "memory_limit": 0}
    given = {
        "augmented_passes": augmented_passes,
        "epochs": epochs,
        "batch_size": batch_size,
        "memory_limit": memory_limit,
    }
    for name, value in given.items():
        check_whole(name, value, least[name])
    if not 0 < lr < math.inf:
        raise UserError(f"expected a positive number as lr; got {lr}")
    if not 0 <= distil <= 1:
        raise UserError(f"expected distil as a share from 0 to 1; got {distil}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"expected dtype as a type of floats, such as torch.float16; got {dtype!r}")
    check_whole("seed", seed, 0)
    device = next(model.parameters()).device
    weighting = _method(method, model, seed).to(device)
    start = time.perf_counter()
    samples: set[int] = set()
    passes = chain.from_iterable(pairs_of(train, model, "training loader") for _ in range(augmented_passes))
    where: dict[str, Any] = {"dtype": dtype, "memory_limit": memory_limit, "keep_in": keep_in}
    kept = keep(model, noted(passes, samples), model.exits - 1, device, **where)
    if len(kept) < LEAST_SAMPLES:
        raise DataError(f"expected at least {LEAST_SAMPLES} samples to fit exits on; got {len(kept)}")
    model.fitted_on |= samples
    middle = time.perf_counter()
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "distil": distil, "seed": seed}
    fitted = fit_heads(model, kept, weighting, **options, device=device)
    seconds = middle - start, time.perf_counter() - middle
    return ExitsFitted(fitted.accuracies, fitted.epochs, len(kept), kept.rows.nbytes, seconds)


def _method(method: str | Method, model: StagedModel, seed: int) -> Method:
    if isinstance(method, Method):
        return method
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build_method(method, find_method(method).options(), model.exits)
