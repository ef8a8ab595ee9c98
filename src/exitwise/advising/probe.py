"""What a network's features say of labelled samples before it is trained on them: linear heads, on held-out parts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exitwise.errors import DataError, UserError
from exitwise.exiting.fitting import folds
from exitwise.kernels.inputs import Inputs, batch_of
from exitwise.kernels.modes import evaluating
from exitwise.methods import Uniform
from exitwise.models.backbones.attach import add_exits
from exitwise.models.backbones.backbone import answer
from exitwise.models.heads import Feature, LinearHead, OnState
from exitwise.models.staged import Stage, StagedModel
from exitwise.training.fitting import fit_heads
from exitwise.training.kept import keep
from exitwise.training.on_kept import HeadsOnKept

EPOCHS, BATCH, UPDATES = 20, 128, 200
"""Of the heads: epochs, more of them where these would be fewer than so many updates, and samples per batch."""

LEAST_SAMPLES = 50
"""Below which a probe says next to nothing."""

MOST_CLASSES = 2**31
"""Of a network whose heads are not made yet."""


class Probe(NamedTuple):
    """What linear heads said of samples that they were not fitted on.

    Attributes:
        logits: at each exit, the network's end being the last one, (N, K, C).
        targets: class indices, (N).
        model: the network with these heads, for its costs.
    """

    logits: NDArray[Any]
    targets: NDArray[np.int64]
    model: StagedModel

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether the head at the network's end is right."""
        right: NDArray[np.bool_] = self.logits[:, -1].argmax(-1) == self.targets
        return right


def probe(
    model: StagedModel, batches: Iterable[tuple[Inputs, Tensor]], classes: int | None = None, seed: int = 0
) -> Probe:
    """Keep what heads need of samples, by one pass, and fit linear heads on it, each part's on the other parts.

    Args:
        model: from :func:`featured`.
        batches: inputs and targets.
        classes: number of classes; by default as many as the targets need.
        seed: of the parts, and of the fits.

    Raises:
        DataError: for fewer than 50 samples, or all of one class.
    """
    device = next(model.parameters()).device
    kept = keep(model, batches, model.exits, device)
    if len(kept) < LEAST_SAMPLES or len(kept.targets.unique()) < 2:
        found = f"{len(kept)} of {len(kept.targets.unique())} class(es)"
        raise DataError(
            f"expected at least {LEAST_SAMPLES} samples, of two classes, to probe a network on; got {found}"
        )
    model = headed(model, classes or int(kept.targets.max()) + 1).to(device)
    heads = [cast("Stage", stage).head for stage in model.stages]
    fresh = copy.deepcopy([head.state_dict() for head in heads])
    logits = np.zeros((len(kept), model.exits, model.num_classes), dtype=np.float32)
    for part in folds(len(kept), seed):
        for head, state in zip(heads, fresh, strict=True):
            head.load_state_dict(state)
        others = torch.from_numpy(np.setdiff1d(np.arange(len(kept)), part))
        epochs = max(EPOCHS, math.ceil(UPDATES * BATCH / (2 * len(others))))
        rest = replace(kept, rows=kept.rows[others], targets=kept.targets[others])
        fit_heads(model, rest, Uniform(), epochs=epochs, batch_size=BATCH, seed=seed, device=device)
        alone = HeadsOnKept(model, kept)
        with torch.no_grad(), evaluating(alone):
            rows, _ = kept.at(torch.from_numpy(part), device)
            logits[part] = torch.stack(alone(rows), dim=1).cpu().numpy()
    return Probe(logits, kept.targets.numpy(), model)


def featured(network: nn.Module, example: Inputs, exits: int) -> StagedModel:
    """Return a classifier as stages up to what its last linear layer sees (or its scores, if it has none), that at the
    end and what it computes at earlier depths being seen by linear heads.

    Where no exit can be put on it, its end alone is seen.
    """
    body = without_classifier(network, example)
    last = cast("Stage", (model := _with_exits(body, example, exits)).stages[-1])
    early = cast("list[Stage]", list(model.stages)[:-1])
    end = Stage(nn.Sequential(last.body, last.head), LinearHead(Feature("vector", model.num_classes, ()), 1))
    return StagedModel([*early, end], MOST_CLASSES, example=example).eval()


def _with_exits(body: nn.Module, example: Inputs, exits: int) -> StagedModel:
    for number in range(exits, 1, -1):
        with suppress(UserError):
            return add_exits(body, exits=number, head="linear", example=example)
    return add_exits(body, exits=1, example=example, skip=False)


def headed(model: StagedModel, classes: int) -> StagedModel:
    """Return the same stages with new linear heads for a number of classes."""
    stages = []
    for stage in cast("list[Stage]", list(model.stages)):
        head = stage.head
        inner = cast("LinearHead", head.head if isinstance(head, OnState) else head)
        new: nn.Module = LinearHead(inner.feature, classes)
        if isinstance(head, OnState):
            own = OnState(new)
            own.mask = head.mask
            new = own
        stages.append(Stage(stage.body, new))
    return StagedModel(stages, classes, example=model.example).eval()


def without_classifier(network: nn.Module, example: Inputs) -> nn.Module:
    """Return a copy of a network that ends before its last linear layer, if what that gives is what it answers."""
    network = copy.deepcopy(network)
    seen: list[tuple[str, Any]] = []
    layers = [(name, module) for name, module in network.named_modules() if name and isinstance(module, nn.Linear)]
    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: seen.append((name, output)))
        for name, module in layers
    ]
    try:
        with torch.no_grad(), evaluating(network):
            logits = answer(network, batch_of(example, 1, next(network.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    if seen and seen[-1][1].shape == logits.shape and torch.equal(seen[-1][1], logits):
        network.set_submodule(seen[-1][0], nn.Identity())
    return network
