"""BatchNorm with the statistics of several processes' images, on any device, in reverse and in forward mode.

torch's SyncBatchNorm has neither a CPU path nor a forward-mode rule. Knows tensors and a sum over processes, and
nothing of networks or training.
"""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from exitwise.kernels.norm import BatchNormCall, BatchNormMode, affine
from exitwise.processes.ranks import Ranks


class SyncedNorm(BatchNormMode):
    """Within this context, BatchNorm in training mode takes its statistics over the images of all processes.

    Args:
        ranks: the processes, with the batch at hand; each must normalise the same layers in the same order.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def normalise(self, call: BatchNormCall) -> Tensor | None:
        return _batch_norm(call, self.ranks)


def _batch_norm(call: BatchNormCall, ranks: Ranks) -> Tensor:
    x = call.input if call.weight is None else call.input.to(call.weight.dtype)  # lower under autocast
    mean, variance, count = moments(x, ranks)
    inverse_std = torch.rsqrt(variance + call.eps)
    scale = inverse_std if call.weight is None else inverse_std * call.weight
    shift = -mean * scale if call.bias is None else call.bias - mean * scale
    if call.running_mean is not None and call.running_var is not None:
        with torch.no_grad():
            mean, variance = (forward_ad.unpack_dual(value).primal for value in (mean, variance))
            call.running_mean.lerp_(mean, call.momentum)
            call.running_var.lerp_(variance * (count / (count - 1)), call.momentum)
    return affine(x, scale, shift).to(call.input.dtype)


def moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance per channel, each (C), and the number of values behind them, over all processes.

    One message: each process's own moments, combined by the rule of Chan et al. (1979), so that nothing cancels.

    Args:
        x: (B, C, ...), this process's share.
        ranks: the processes.
    """
    over = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x, over, correction=0)
    own = torch.cat([mean, variance, mean.new_full((1,), x.numel() // x.shape[1])])
    mine = torch.zeros(ranks.size, 1, dtype=own.dtype, device=own.device)
    mine[ranks.rank] = 1
    everyone = ranks.sum_through(mine * own)  # the rows of all processes
    means, variances, counts = everyone.split([len(mean), len(mean), 1], dim=1)
    counts = counts.detach()
    shares = counts / counts.sum()
    total = (shares * means).sum(0)
    count = counts.sum() if ranks.dealt else counts[0, 0]
    return total, (shares * (variances + (means - total) ** 2)).sum(0), count
