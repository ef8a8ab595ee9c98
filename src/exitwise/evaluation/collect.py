"""Outputs of all exits on a split, by one process or by several together."""

from __future__ import annotations

import torch

from exitwise.data import Split
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, collect_outputs
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import Ranks


def collect(model: StagedModel, split: Split, device: torch.device, workers: int = 0) -> Outputs:
    """Outputs of all exits on a split."""
    return collect_outputs(model, split.batches(EVALUATION_BATCH, workers), device)


def collect_together(model: StagedModel, split: Split, device: torch.device, workers: int, ranks: Ranks) -> Outputs:
    """:func:`collect`, each process taking its share of the images; all get all outputs, in order, none twice."""
    if len(split) < ranks.size:
        return collect(model, split, device, workers)
    share = collect(model, split.share(ranks.rank, ranks.size), device, workers)
    return Outputs(*(ranks.gather(torch.from_numpy(part))[0].numpy() for part in share))
