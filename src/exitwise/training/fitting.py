"""Heads fitted on what was kept of a frozen network, each to its own best epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitwise.errors import UserError
from exitwise.kernels.modes import evaluating
from exitwise.methods.base import Method
from exitwise.methods.losses.distil import DistilLast
from exitwise.models.staged import Stage, StagedModel
from exitwise.training.kept import Kept
from exitwise.training.on_kept import HeadsOnKept, KeptBatches
from exitwise.training.trainer import Trainer
from exitwise.weighting.losses import Loss

SHARE_HELD_OUT = 0.1
"""Of what was kept, held out to choose each head's best epoch."""


class Fitted(NamedTuple):
    """How heads were fitted: the epoch that was best for each, from 1, and its accuracy on held-out samples then."""

    epochs: list[int]
    accuracies: list[float]


def fit_heads(
    model: StagedModel,
    kept: Kept,
    method: Method,
    *,
    epochs: int = 40,
    batch_size: int = 256,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    distil: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Train the first heads of a network on what was kept; each ends with the weights of its own best epoch.

    AdamW with a cosine schedule, batches in halves as in every training. The heads share nothing, so that training them
    together with method ``uniform`` is training each alone.

    Args:
        model: the network; its first ``kept.heads`` heads are changed, and nothing else.
        kept: see :func:`~exitwise.training.kept.keep`.
        method: what each sample counts at each exit.
        epochs: passes over what was kept.
        batch_size, lr, weight_decay, label_smoothing, distil: of the training.
        seed: of the order, of the choice of held-out samples, and of dropout.
        device: where the network lies.

    Raises:
        UserError: for a head whose loss is never finite.
    """
    heads = [cast("Stage", stage).head for stage in model.stages][: kept.heads]
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
    held_out, train = order.tensor_split([max(1, round(len(order) * SHARE_HELD_OUT))])
    gpus = [device] if torch.device(device).type == "cuda" else []
    with _trained(heads) as params, torch.random.fork_rng(gpus), torch.enable_grad():
        torch.manual_seed(seed)
        alone = HeadsOnKept(model, kept)
        best = _BestEpochs(alone, heads, kept, held_out, device)
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=bool(gpus))
        batches = KeptBatches(kept, train[None], batch_size, seed, device)
        loss = DistilLast(distil, label_smoothing=label_smoothing) if distil else Loss(label_smoothing=label_smoothing)
        Trainer(alone, optimizer, method, batches, best.look, epochs=epochs, loss=loss).fit()
        return best.take(lr)


class _BestEpochs:
    """Watches each head's loss on held-out samples, and remembers the head as it was when that was least."""

    def __init__(
        self,
        alone: HeadsOnKept,
        heads: Sequence[nn.Module],
        kept: Kept,
        held_out: Tensor,
        device: torch.device | str,
    ) -> None:
        self.alone = alone
        self.heads = heads
        self.parts = [kept.at(index, device) for index in held_out.split(1024)]
        self.epoch = 0
        self.found: list[tuple[float, int, float, dict[str, Any]]] = [(float("inf"), 0, 0.0, {}) for _ in heads]

    def look(self) -> list[float]:
        """After an epoch; returns the accuracy of each exit on the held-out samples."""
        self.epoch += 1
        with torch.no_grad(), evaluating(self.alone):
            logits = torch.cat([torch.stack(self.alone(rows), dim=1) for rows, _ in self.parts])
        targets = torch.cat([labels for _, labels in self.parts])
        losses = F.cross_entropy(logits.transpose(1, 2), targets[:, None].expand(logits.shape[:2]), reduction="none")
        accuracies: list[float] = (logits.argmax(2) == targets[:, None]).double().mean(0).tolist()
        for k, (loss, head) in enumerate(zip(losses.mean(0).tolist(), self.heads, strict=False)):
            if loss < self.found[k][0]:
                self.found[k] = (loss, self.epoch, accuracies[k], copy.deepcopy(head.state_dict()))
        return accuracies

    def take(self, lr: float) -> Fitted:
        """Give each head its best weights."""
        for number, (head, (*_, state)) in enumerate(zip(self.heads, self.found, strict=True), start=1):
            if not state:
                raise UserError(f"the loss of exit {number} was never finite: a lower lr may help (got {lr:g})")
            head.load_state_dict(state)
        return Fitted([epoch for _, epoch, *_ in self.found], [accuracy for *_, accuracy, _ in self.found])


@contextmanager
def _trained(heads: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """The parameters of heads, to be trained within the context; gradients and modes are as before afterwards.

    After an error the heads are as before too.
    """
    states = [copy.deepcopy(head.state_dict()) for head in heads]
    params = [param for head in heads for param in head.parameters()]
    modes = [(module, module.training) for head in heads for module in head.modules()]
    required = [(param, param.requires_grad, param.grad) for param in params]
    for param in params:
        param.requires_grad_(True)
        param.grad = None
    try:
        yield params
    except BaseException:
        for head, state in zip(heads, states, strict=True):
            head.load_state_dict(state)
        raise
    finally:
        for param, needed, gradient in required:
            param.grad = gradient
            param.requires_grad_(needed)
        for module, mode in modes:
            module.training = mode
