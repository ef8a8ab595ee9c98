"""What leaving at each exit costs: multiply-accumulates and parameters, counted on the network itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from exitwise.kernels.flops import flop_counter
from exitwise.kernels.inputs import Inputs, batch_of
from exitwise.kernels.modes import evaluating

if TYPE_CHECKING:
    from exitwise.models.staged import StagedModel


class Cost(NamedTuple):
    """Cumulative costs, one entry per exit; earlier exits' heads are included.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products per sample.
        params: parameters of all stages up to the exit.
    """

    macs: tuple[int, ...]
    params: tuple[int, ...]


def count_alone(model: StagedModel, exit: int) -> int:
    """MACs of one exit (0-based) for one sample, without those before it."""
    with torch.no_grad(), evaluating(model), flop_counter() as counter:
        model.forward_only(_sample(model), exit)
    return counter.get_total_flops() // 2


def count_cost(model: StagedModel) -> Cost:
    """MACs and parameters to each exit, for one sample, the first of ``model.example``.

    Counted by torch's flop counter, at two operations per MAC, on a pass in eval mode.
    """
    macs = []
    with torch.no_grad(), evaluating(model), flop_counter() as counter:
        for _ in model.run_stages(_sample(model)):
            macs.append(counter.get_total_flops() // 2)
    seen: dict[int, int] = {}
    params = []
    for stage in model.stages:
        seen.update({id(p): p.numel() for p in stage.parameters()})
        params.append(sum(seen.values()))
    return Cost(tuple(macs), tuple(params))


def _sample(model: StagedModel) -> Inputs:
    return batch_of(model.example, 1, next(model.parameters()))
