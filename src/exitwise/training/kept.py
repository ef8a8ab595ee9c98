"""What the heads of a frozen network need of each sample: kept by one pass, so that the network is not run again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from exitwise.errors import DataError, UserError
from exitwise.kernels.inputs import Inputs, moved
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import Stage, StagedModel
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.training.rows import MEMORY_LIMIT, Rows


class ReducingHead(Protocol):
    """A head in two parts: what it needs of its feature, without parameters, and the rest."""

    def reduce(self, x: Tensor) -> Tensor: ...

    def classify(self, reduced: Tensor) -> Tensor: ...


def reduce(head: nn.Module, feature: Any) -> Any:
    """Return what a head needs of its feature: pooled, where the head says how, else all of it."""
    return cast("ReducingHead", head).reduce(feature) if hasattr(head, "reduce") else feature


def classify(head: nn.Module, reduced: Any) -> Tensor:
    """Return a head's logits of what :func:`reduce` gave."""
    return cast("ReducingHead", head).classify(reduced) if hasattr(head, "reduce") else head(reduced)


class Place(NamedTuple):
    """Where a row holds what one exit needs: the shape of that, and its first column."""

    shape: tuple[int, ...]
    start: int

    def of(self, rows: Tensor) -> Tensor:
        """Return it for some rows."""
        return rows[:, self.start : self.start + prod(self.shape)].unflatten(1, self.shape)


@dataclass(frozen=True)
class Kept:
    """What the exits of a network need of N samples.

    Attributes:
        rows: a row per sample, all exits side by side, (N, D).
        targets: class indices, (N).
        places: of each exit's part within a row.
        heads: so many exits are kept as what their heads need of a feature; those after them as logits.
        dtype: what the heads take.
        on_disk: whether the rows are in a file, mapped into memory.
    """

    rows: Tensor
    targets: Tensor
    places: tuple[Place, ...]
    heads: int
    dtype: torch.dtype
    on_disk: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def __str__(self) -> str:
        where = "on disk" if self.on_disk else "in memory"
        return f"{len(self)} samples, what exits need of them kept {where} ({self.rows.nbytes / 2**20:.0f} MiB)"

    def at(self, index: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return rows and targets of some samples, on a device, the rows as the heads take them."""
        return self.rows[index].to(device, self.dtype), self.targets[index].to(device)

    def batches(self, size: int, device: torch.device | str) -> Iterable[tuple[Tensor, Tensor]]:
        """Return all samples in order."""
        return (self.at(index, device) for index in torch.arange(len(self)).split(size))


def keep(
    model: StagedModel,
    batches: Iterable[tuple[Inputs, Tensor]],
    heads: int,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
    keep_in: str | Path | None = None,
    ranks: Ranks = ALONE,
) -> Kept:
    """Run a network once over all batches, in eval mode, and keep what its first heads need; of the last exit, if it is
    not among these, the logits.

    Args:
        model: the network.
        batches: inputs and targets.
        heads: how many heads, from the first on: all, or all but the last.
        device: where the network lies.
        dtype: what to keep it as; None: as the network computes it.
        memory_limit: bytes that are kept in memory; more are kept in a temporary file.
        keep_in: the folder of that file; None: the system's.
        ranks: the processes that keep together: each gives its share of each batch, and all get all.

    Raises:
        UserError: where a head sees something other than a tensor and does not say what it needs of it, or the disk is
            full.
        DataError: for values that are not finite, or of another shape than before.
    """
    stages = cast("list[Stage]", list(model.stages))
    places: tuple[Place, ...] = ()
    labels = []
    with closing(Rows(memory_limit, keep_in)) as rows, torch.no_grad(), evaluating(model):
        for inputs, targets in batches:
            parts = []
            state: Any = moved(inputs, device)
            for k, stage in enumerate(stages):
                state = stage.body(state)
                if k < heads:
                    parts.append(_tensor(reduce(stage.head, state), f"what exit {k + 1} sees"))
            if heads < len(stages):
                parts.append(_tensor(stages[-1].head(state), "the last exit's answers"))
            places = places or _places(parts)
            for number, (part, place) in enumerate(zip(parts, places, strict=True), start=1):
                _check(part, place, dtype or part.dtype, number)
            row = torch.cat([part.flatten(1) for part in parts], dim=1)
            (whole, _), (everyone, _) = ranks.gather(row.to(dtype or row.dtype)), ranks.gather(targets.to(device))
            rows.add(whole.cpu())
            labels.append(everyone.cpu())
        wanted = next(model.parameters()).dtype
        return Kept(rows.whole(), torch.cat(labels), places, heads, wanted, rows.on_disk)


def _places(parts: list[Tensor]) -> tuple[Place, ...]:
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + prod(part.shape[1:]))
    return tuple(Place(tuple(part.shape[1:]), start) for part, start in zip(parts, starts, strict=False))


def _tensor(found: Any, what: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise UserError(
            f"expected a tensor as {what}, to be kept; got a {type(found).__name__} (train all exits instead)"
        )
    return found


def _check(part: Tensor, place: Place, dtype: torch.dtype, number: int) -> None:
    if tuple(part.shape[1:]) != place.shape:
        found = f"{place.shape}, then {tuple(part.shape[1:])}"
        raise DataError(f"expected what exit {number} sees in one shape, to be kept; got {found}")
    if not part.isfinite().all():
        raise DataError(
            f"expected finite numbers as what exit {number} sees; some are not: look at the inputs and at the network"
        )
    if part.dtype != dtype and part.numel() and part.abs().max() > torch.finfo(dtype).max:
        raise DataError(f"expected what exit {number} sees within the range of {dtype}; got {part.abs().max():g}")
