"""Runs a staged network stage by stage and drops the samples that leave, so that easy inputs really cost less."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from exitwise.exiting.policy import ExitPolicy
from exitwise.models.cost import count_cost
from exitwise.models.staged import StagedModel, State, evaluating


class ExitResult(NamedTuple):
    """What became of a batch, one entry per sample in the order given.

    Attributes:
        prediction: class index, int64 (B).
        exit: exit taken, 0-based, int64 (B).
        confidence: max softmax at that exit, (B).
        macs: multiply-accumulates spent, float64 (B).
    """

    prediction: Tensor
    exit: Tensor
    confidence: Tensor
    macs: Tensor


class EarlyExitRunner:
    """Early-exit inference: call it with a batch of images.

    Args:
        model: the network; it is run in eval mode and otherwise left as it is.
        policy: when a sample leaves.
        exit_macs: cost of leaving at each exit; counted on the network if not given.

    Raises:
        ValueError: if the policy is for another number of exits.
    """

    def __init__(self, model: StagedModel, policy: ExitPolicy, exit_macs: tuple[int, ...] | None = None) -> None:
        if policy.exits != model.exits:
            raise ValueError(f"expected a policy for {model.exits} exits; got one for {policy.exits}")
        self.model = model
        self.policy = policy
        self.exit_macs = exit_macs or count_cost(model).macs
        self._costs = torch.tensor(self.exit_macs, dtype=torch.float64)

    def __call__(self, images: Tensor) -> ExitResult:
        """Classify images (B, channels, height, width), each as deep as it needs."""
        with torch.inference_mode(), evaluating(self.model):
            return self._run(images)

    def _run(self, images: Tensor) -> ExitResult:
        n, device = len(images), images.device
        prediction = torch.empty(n, dtype=torch.int64, device=device)
        exit = torch.empty(n, dtype=torch.int64, device=device)
        confidence = torch.empty(n, dtype=images.dtype, device=device)
        inside = torch.arange(n, device=device)
        state: State = images
        for k, stage in enumerate(self.model.stages):
            state, logits = stage(state)
            if not self.policy.can_leave(k):
                continue
            confident, label = logits.softmax(dim=-1).max(dim=-1)
            leaves = self.policy.leaves(confident, k)
            count = int(leaves.sum())  # the one wait for the device at an exit
            if count == 0:
                continue
            if count == len(inside):
                prediction[inside], confidence[inside], exit[inside] = label, confident, k
                break
            order = leaves.int().argsort(descending=True, stable=True)
            go, stay = order[:count], order[count:]
            leaving = inside[go]
            prediction[leaving], confidence[leaving], exit[leaving] = label[go], confident[go], k
            inside, state = inside[stay], select(state, stay)
        macs = self._costs.to(device)[exit]
        return ExitResult(prediction, exit, confidence, macs)


def select(state: State, index: Tensor) -> State:
    """The state of some samples only: every tensor in it indexed along its first dimension."""
    return tree_map(lambda tensor: tensor.index_select(0, index), state)
