"""Outputs of all exits on a split, by one process or by several together."""

from __future__ import annotations

import torch

from exitwise.data import Split
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_outputs
from exitwise.exiting.outputs import Outputs
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE, Ranks


def collect(model: StagedModel, split: Split, device: torch.device, workers: int = 0) -> Outputs:
    """Outputs of all exits on a split."""
    return collect_outputs(model, split.batches(EVALUATION_BATCH, workers), device)


def collect_together(model: StagedModel, split: Split, device: torch.device, workers: int, ranks: Ranks) -> Outputs:
    """:func:`collect`, each process taking its share of the images; all get all outputs, in order, none twice."""
    share, ranks = share_of(split, ranks)
    return together(collect(model, share, device, workers), ranks)


def share_of(split: Split, ranks: Ranks) -> tuple[Split, Ranks]:
    """Return this process's share of the images, and the processes that have the others; too few are not shared."""
    return (split, ALONE) if len(split) < ranks.size else (split.share(ranks.rank, ranks.size), ranks)


def together(outputs: Outputs, ranks: Ranks) -> Outputs:
    """Return the outputs of all processes, in the order of ranks, from those on the own share."""
    return Outputs(*(ranks.gather(torch.from_numpy(part))[0].numpy() for part in outputs))
