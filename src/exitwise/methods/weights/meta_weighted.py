"""Training with learned sample weights (Han et al., ECCV 2022): the weight-prediction network and its meta step.

The gradient is ``weighting.gradient``'s; this file says when it is taken and what it updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.budgets import check_count, check_proportions, exit_proportions
from exitwise.catalogue.methods import MetaWeightedOptions
from exitwise.methods.base import Method, Weighting
from exitwise.weighting.allocation import Objective
from exitwise.weighting.gradient import meta_gradient
from exitwise.weighting.guard import Undo, all_finite, step_if
from exitwise.weighting.network import WeightInput, WeightNetwork
from exitwise.weighting.normalize import Centering
from exitwise.weighting.passes import Batch, TrainPass
from exitwise.weighting.tangents import GradientMode


class MetaWeighted(Method):
    """Weights from a network that is trained so that a one-step look-ahead lowers the meta loss.

    Every ``meta_interval``-th loaded batch, each half step first updates the weight-prediction network by
    the gradient of the meta loss at the look-ahead; then the network trains with the updated weights.

    Args:
        network: the weight-prediction network.
        optimizer: its optimizer (the paper's is Adam), whose state begins at 0, as that of SGD, Adam and AdamW does.
        proportions: share of samples leaving at each exit under the budget to train for.
        objective: ``share-weighted`` or the authors' ``per-exit``.
        mode: how the gradient is computed; see :func:`~exitwise.weighting.gradient.meta_gradient`.
        meta_interval: update the weight-prediction network on loaded batches 0, m, 2m, ... of an epoch.
        p_range: draw the budget parameter p anew for each meta step, uniformly from (low, high), and use its
            proportions (see :func:`~exitwise.weighting.allocation.exit_proportions`) in place of ``proportions``.
    """

    options = MetaWeightedOptions
    optimizer: Optimizer

    def __init__(
        self,
        network: WeightNetwork,
        optimizer: Optimizer,
        proportions: Sequence[float],
        *,
        objective: Objective = MetaWeightedOptions.objective,
        mode: GradientMode = MetaWeightedOptions.gradient,
        meta_interval: int = MetaWeightedOptions.meta_interval,
        p_range: Sequence[float] | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.proportions = check_proportions(proportions, len(proportions))
        self.objective = objective
        self.mode = mode
        self.meta_interval = meta_interval
        self.p_range = p_range
        self.generator = torch.Generator().manual_seed(torch.initial_seed())
        self._learned: Undo | None = None

    @classmethod
    def create(
        cls,
        proportions: Sequence[float],
        *,
        hidden: int = MetaWeightedOptions.wpn_hidden,
        layers: int = MetaWeightedOptions.wpn_layers,
        inputs: WeightInput = MetaWeightedOptions.wpn_input,
        epsilon: float = MetaWeightedOptions.epsilon,
        centering: Centering = MetaWeightedOptions.centering,
        zero_init: bool = MetaWeightedOptions.wpn_zero_init,
        lr: float = MetaWeightedOptions.wpn_lr,
        weight_decay: float = MetaWeightedOptions.wpn_weight_decay,
        fused: bool = False,
        **options: Any,
    ) -> Self:
        """Return one with a fresh :class:`WeightNetwork` and Adam; ``options`` are arguments of the class itself.

        The paper's settings are ``zero_init=False``, ``lr=1e-4`` and ``objective="per-exit"``. With ``fused`` (see
        :class:`torch.optim.Adam`) a step can be skipped without waiting for a GPU.
        """
        network = WeightNetwork(len(proportions), hidden, layers, inputs, epsilon, centering, zero_init)
        optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
        return cls(network, optimizer, proportions, **options)

    @classmethod
    def from_options(cls, options: MetaWeightedOptions, exits: int, *, fused: bool = False) -> Self:
        return cls.create(
            options.proportions or exit_proportions(options.p, exits),
            hidden=options.wpn_hidden,
            layers=options.wpn_layers,
            inputs=options.wpn_input,
            epsilon=options.epsilon,
            centering=options.centering,
            zero_init=options.wpn_zero_init,
            lr=options.wpn_lr,
            weight_decay=options.wpn_weight_decay,
            fused=fused,
            objective=options.objective,
            mode=options.gradient,
            meta_interval=options.meta_interval,
            p_range=options.p_range,
        )

    def check(self, exits: int) -> None:
        check_count("proportions", self.proportions, exits)

    def updates_at(self, index: int) -> bool:
        """Return whether the weight-prediction network learns from this loaded batch."""
        return index % self.meta_interval == 0

    def budget(self) -> list[float]:
        """Return the exit proportions to train for in the meta step at hand."""
        if self.p_range is None:
            return self.proportions
        low, high = self.p_range
        share = float(torch.rand((), generator=self.generator))
        return exit_proportions(low + (high - low) * share, len(self.proportions))

    def takes_tangents(self, index: int) -> bool:
        return self.mode == "forward" and self.updates_at(index)

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        losses = forward.losses.detach()
        meta_loss = finite = None
        if self.updates_at(index):
            with torch.no_grad():
                weights = self.network(losses, forward.confidences, forward.ranks.scope)
            result = meta_gradient(
                model, optimizer, forward, weights, meta, self.budget(), objective=self.objective, mode=self.mode
            )
            meta_loss, finite = result.loss, forward.ranks.all_true(all_finite(result.weights))
            self.learn(forward, result.weights, finite)
        with torch.no_grad():
            return Weighting(self.network(losses, forward.confidences, forward.ranks.scope), meta_loss, finite)

    def learn(self, forward: TrainPass, gradient: Tensor, ok: Tensor) -> None:
        """Step the weight-prediction network, given d meta loss / d weights (B, K) of that half batch, if ``ok``.

        :meth:`stepped` takes it back where the network's own step is skipped.
        """
        self.optimizer.zero_grad()
        self.network(forward.losses, forward.confidences, forward.ranks.scope).backward(gradient * forward.share)
        grads = [param.grad for param in self.network.parameters() if param.grad is not None]
        if forward.ranks.size > 1:
            torch._foreach_copy_(grads, forward.ranks.sum_all(grads))
        self._learned = Undo(self.optimizer)
        step_if(ok, self.optimizer)

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        if self._learned is not None:
            self._learned.unless(taken)
        self._learned = None

    def to(self, device: torch.device) -> Self:
        self.network.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
