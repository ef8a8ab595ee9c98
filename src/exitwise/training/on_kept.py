"""The heads of a frozen network as a network of their own, whose inputs are rows of what was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from exitwise.data.sampling import EpochBatches
from exitwise.models.staged import Stage, StagedModel
from exitwise.training.kept import Kept, Place, classify


class HeadsOnKept(StagedModel):
    """The exits of a network, each on its part of the rows that were kept for it.

    Its first ``kept.heads`` heads are the network's own, trained together with it; of the other exits it repeats the
    logits that were kept. Its state is that of the whole network, so that a checkpoint is one of that.

    Args:
        whole: the network.
        kept: see :func:`~exitwise.training.kept.keep`.
    """

    def __init__(self, whole: StagedModel, kept: Kept) -> None:
        own = [cast("Stage", stage).head for stage in whole.stages][: kept.heads]
        heads = [*own, *(nn.Identity() for _ in kept.places[kept.heads :])]
        stages = [Stage(nn.Identity(), _OnRows(head, place)) for head, place in zip(heads, kept.places, strict=True)]
        super().__init__(stages, whole.num_classes, (kept.rows.shape[1],))
        self._whole = (whole,)  # in a tuple it is no part of this one

    @property
    def exit_macs(self) -> tuple[int, ...]:
        """Those of the whole network."""
        return self._whole[0].exit_macs

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self._whole[0].state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self._whole[0].load_state_dict(state_dict, *args, **kwargs)


class _OnRows(nn.Module):
    def __init__(self, head: nn.Module, place: Place) -> None:
        super().__init__()
        self.head = head
        self.place = place

    def forward(self, rows: Tensor) -> Tensor:
        return classify(self.head, self.place.of(rows))


class KeptBatches:
    """Training batches of what was kept, on a device.

    Args:
        kept: the samples, maybe several passes over them.
        passes: which rows are the samples of each pass, int64 (passes, N); epochs take the passes in turn.
        batch_size, seed, rank, ranks: as for :class:`~exitwise.data.TrainingBatches`, and with the same batches.
        device: where to train.

    Attributes:
        sampler: says which epoch and batch come next.
    """

    def __init__(
        self,
        kept: Kept,
        passes: Tensor,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.kept = kept
        self.passes = passes
        self.sampler = EpochBatches(passes.shape[1], batch_size, seed, rank, ranks)
        self.device = device

    def __str__(self) -> str:
        return str(self.kept)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.passes[self.sampler.epoch % len(self.passes)]
        return (self.kept.at(rows[positions], self.device) for positions in self.sampler.positions())
