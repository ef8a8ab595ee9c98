"""What leaving at each exit costs: multiply-accumulates and parameters, counted on the network itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from exitwise.models.staged import StagedModel, evaluating


class Cost(NamedTuple):
    """Cumulative costs, one entry per exit; earlier exits' heads are included.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products per image.
        params: parameters of all stages up to the exit.
    """

    macs: tuple[int, ...]
    params: tuple[int, ...]


def count_cost(model: StagedModel) -> Cost:
    """MACs and parameters to each exit, for one image of ``model.input_shape``.

    Counted by torch's flop counter, at two operations per MAC, on a pass in eval mode.
    """
    parameter = next(model.parameters())
    images = torch.zeros(1, *model.input_shape, device=parameter.device, dtype=parameter.dtype)
    macs = []
    with torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        for _ in model.run_stages(images):
            macs.append(counter.get_total_flops() // 2)
    seen: dict[int, int] = {}
    params = []
    for stage in model.stages:
        seen.update({id(p): p.numel() for p in stage.parameters()})
        params.append(sum(seen.values()))
    return Cost(tuple(macs), tuple(params))
