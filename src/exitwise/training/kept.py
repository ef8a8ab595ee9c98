"""Heads on a frozen backbone: one pass keeps what each head needs of the inputs, and the heads train on what was kept.

The network below the heads is not run again, so that an epoch of training costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from exitwise.errors import DataError, UserError
from exitwise.kernels.inputs import Inputs, moved
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import Stage, StagedModel

SHARE_HELD_OUT = 0.1
"""Of what was kept, held out to choose each head's best epoch."""


class ReducingHead(Protocol):
    """A head in two parts: what it needs of its feature, without parameters, and the rest."""

    def reduce(self, x: Tensor) -> Tensor: ...

    def classify(self, reduced: Tensor) -> Tensor: ...


class Kept(NamedTuple):
    """What heads need of N samples.

    Attributes:
        features: of each head, (N, ...).
        last: logits of the network's last exit, (N, C).
        targets: class indices, (N).
    """

    features: list[Tensor]
    last: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(each.nbytes for each in (*self.features, self.last, self.targets))


def reduce(head: nn.Module, feature: Any) -> Any:
    """Return what a head needs of its feature: pooled, where the head says how, else all of it."""
    return cast("ReducingHead", head).reduce(feature) if hasattr(head, "reduce") else feature


def classify(head: nn.Module, reduced: Any) -> Tensor:
    """Return a head's logits of what :func:`reduce` gave."""
    return cast("ReducingHead", head).classify(reduced) if hasattr(head, "reduce") else head(reduced)


def keep(
    model: StagedModel, batches: Iterable[tuple[Inputs, Tensor]], heads: int, device: torch.device | str = "cpu"
) -> Kept:
    """Run the network once over all batches, in eval mode, and keep what its first heads need.

    Args:
        model: the network.
        batches: inputs and targets.
        heads: how many heads, from the first on.
        device: where the network lies.

    Raises:
        UserError: where a head sees something other than a tensor and does not say what it needs of it.
        DataError: for values that are not finite.
    """
    stages = cast("list[Stage]", list(model.stages))
    features: list[list[Tensor]] = [[] for _ in range(heads)]
    last, labels = [], []
    with torch.no_grad(), evaluating(model):
        for inputs, targets in batches:
            state: Any = moved(inputs, device)
            for k, stage in enumerate(stages):
                state = stage.body(state)
                if k < heads:
                    features[k].append(_checked(reduce(stage.head, state), f"what exit {k + 1} sees"))
            last.append(_checked(stages[-1].head(state), "the last exit's answers"))
            labels.append(targets.cpu())
    return Kept([torch.cat(each) for each in features], torch.cat(last), torch.cat(labels))


def _checked(kept: Any, what: str) -> Tensor:
    if not isinstance(kept, Tensor):
        raise UserError(
            f"expected a tensor as {what}, to be kept; got a {type(kept).__name__} (train all exits instead)"
        )
    if not kept.isfinite().all():
        raise DataError(f"expected finite numbers as {what}; some are not: look at the inputs and at the network")
    return kept.cpu()


class Fitted(NamedTuple):
    """How heads were fitted: the epoch that was best for each, from 1, and its accuracy on held-out samples then."""

    epochs: list[int]
    accuracies: list[float]


def fit_heads(
    model: StagedModel,
    kept: Kept,
    *,
    epochs: int = 40,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    distil: float = 0.0,
    temperature: float = 2.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Train the first heads of a network on what was kept; each ends with the weights of its own best epoch.

    AdamW with a cosine schedule. The heads share nothing, so that training them together is training each alone.

    Args:
        model: the network; its first ``len(kept.features)`` heads are changed, and nothing else.
        kept: see :func:`keep`.
        epochs: passes over what was kept.
        batch_size, lr, weight_decay, label_smoothing: of the training.
        distil: share of the loss that is the divergence from the last exit's probabilities at ``temperature``.
        temperature: of both, for that divergence, which counts ``temperature ** 2`` times (Hinton et al., 2015).
        seed: of the order, and of the choice of held-out samples.
        device: where the network lies.
    """
    heads = [cast("Stage", stage).head for stage in model.stages][: len(kept.features)]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(kept.targets), generator=generator)
    held_out, train = order.tensor_split([max(1, round(len(order) * SHARE_HELD_OUT))])
    steps = -(-len(train) // batch_size)
    best: list[tuple[float, int, float, dict[str, Tensor]]] = [(float("inf"), 0, 0.0, {})] * len(heads)
    with _trained(heads) as params, torch.enable_grad():
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)
        schedule = CosineLRScheduler(optimizer, epochs * steps, t_in_epochs=False)
        for epoch in range(epochs):
            _set_training(heads, True)
            shuffled = train[torch.randperm(len(train), generator=generator)]
            for number, index in enumerate(shuffled.split(batch_size)):
                if len(index) < 2:  # BatchNorm takes no single sample
                    continue
                schedule.step_update(epoch * steps + number)
                targets, teacher = kept.targets[index].to(device), kept.last[index].to(device)
                logits = (
                    classify(head, each[index].to(device)) for head, each in zip(heads, kept.features, strict=True)
                )
                losses = [_loss(each, targets, teacher, label_smoothing, distil, temperature) for each in logits]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
            _set_training(heads, False)
            rows = zip(best, heads, kept.features, strict=True)
            best = [_better(*row, kept, held_out, epoch + 1, device) for row in rows]
        for number, (head, (*_, state)) in enumerate(zip(heads, best, strict=True), start=1):
            if not state:
                raise UserError(f"the loss of exit {number} was never finite: a lower lr may help (got {lr:g})")
            head.load_state_dict(state)
    return Fitted([epoch for _, epoch, *_ in best], [accuracy for *_, accuracy, _ in best])


@contextmanager
def _trained(heads: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """The parameters of heads, to be trained within the context; gradients and modes are as before afterwards."""
    params = [param for head in heads for param in head.parameters()]
    modes = [(module, module.training) for head in heads for module in head.modules()]
    required = [(param, param.requires_grad, param.grad) for param in params]
    for param in params:
        param.requires_grad_(True)
    try:
        yield params
    finally:
        for param, needed, gradient in required:
            param.grad = gradient
            param.requires_grad_(needed)
        for module, mode in modes:
            module.training = mode


def _better(
    best: tuple[float, int, float, dict[str, Tensor]],
    head: nn.Module,
    feature: Tensor,
    kept: Kept,
    held_out: Tensor,
    epoch: int,
    device: torch.device | str,
) -> tuple[float, int, float, dict[str, Tensor]]:
    with torch.no_grad():
        logits = torch.cat([classify(head, feature[part].to(device)).cpu() for part in held_out.split(1024)])
    targets = kept.targets[held_out]
    loss = F.cross_entropy(logits, targets).item()
    if not loss < best[0]:
        return best
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    return loss, epoch, accuracy, {name: value.clone() for name, value in head.state_dict().items()}


def _set_training(heads: Sequence[nn.Module], mode: bool) -> None:
    for head in heads:
        head.train(mode)


def _loss(
    logits: Tensor, targets: Tensor, teacher: Tensor, label_smoothing: float, distil: float, temperature: float
) -> Tensor:
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if not distil:
        return loss
    ours, theirs = ((each / temperature).log_softmax(1) for each in (logits, teacher))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - distil) * loss + distil * temperature**2 * divergence
