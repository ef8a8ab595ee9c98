"""A cheaper variant of learned sample weights: half batches in one chain, the look-ahead being the real update.

Differs from the authors' step in two ways: the weight-prediction network is updated half a step late, and the
meta half of a half batch is the next one in the chain, also across loaded batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exitwise.errors import UserError
from exitwise.kernels.gradients import unchanged_gradients
from exitwise.kernels.inputs import device_of, named
from exitwise.methods.base import Weighting
from exitwise.methods.flow.base import flowing_as_at
from exitwise.methods.weights.meta_weighted import MetaWeighted
from exitwise.processes.shares import deal_shares, dealt_to, gather_shares, gather_states, own_states
from exitwise.weighting.calls import trainable
from exitwise.weighting.gradient import allocated_loss, scale_by_gain, total_gradients, weight_gradient
from exitwise.weighting.guard import all_finite
from exitwise.weighting.lookahead import GainRule, gain_rules
from exitwise.weighting.passes import Batch, TrainPass
from exitwise.weighting.replay import RandomState


@dataclass
class Pending:
    """A half step whose effect the next half batch will judge.

    Attributes:
        forward: its forward pass, without graph.
        params: the parameters before the step.
        rules: how the optimizer stood before the step; empty once the gain is known.
        gain: what the step made of a fresh gradient; known after the step.
        taken: whether there was a step, a bool scalar; known after it.
        progress: share of the training that was done before it.
    """

    forward: TrainPass
    params: dict[str, Tensor]
    rules: dict[str, GainRule] = field(default_factory=dict)
    gain: dict[str, Tensor | float] = field(default_factory=dict)
    taken: Tensor | None = None
    progress: float = 0.0


class SharedStep(MetaWeighted):
    """:class:`MetaWeighted` at the price of one forward pass and two backward passes less per half step.

    With half batches h_1, h_2, ... the network trains on h_t; the result is at once the look-ahead of step t
    and the start of step t + 1, so that the forward pass over h_{t+1} is also the meta pass of step t. The
    gradient is exact for that schedule (docs/method.md, "The shared step"). Arguments as for :class:`MetaWeighted`.
    """

    pending: Pending | None = None
    loaded: dict[str, Any] | None = None
    """A pending half of a checkpoint, as a whole: it is dealt when the processes are known."""

    def weigh(self, model: nn.Module, optimizer: Optimizer, forward: TrainPass, meta: Batch, index: int) -> Weighting:
        if self.loaded is not None:
            self.pending, self.loaded = _unpack(self.loaded, forward, trainable(model)), None
        loss, finite = (None, None) if self.pending is None else self._learn(model, self.pending, forward)
        self.pending = None
        if forward.ranks.dealt and not isinstance(forward.inputs, Tensor):
            raise UserError(
                "a half batch of several processes is kept for the shared step, which takes one tensor as input; got "
                f"{', '.join(forward.inputs)} (method meta-weighted takes them)"
            )
        if self.updates_at(index):
            params = trainable(model)
            before = {name: param.detach().clone() for name, param in params.items()}
            rules = gain_rules(optimizer, params)
            self.pending = Pending(_without_graph(forward), before, rules, progress=self.progress)
        with torch.no_grad():
            return Weighting(self.network(forward.losses, forward.confidences, forward.ranks.scope), loss, finite)

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        super().stepped(model, taken)
        if self.pending is not None:
            grads = {name: param.grad for name, param in trainable(model).items()}
            self.pending.gain = {
                name: rule(self.pending.params[name], grad)
                for name, rule in self.pending.rules.items()
                if (grad := grads[name]) is not None
            }
            self.pending.rules = {}
            self.pending.taken = taken

    def _learn(self, model: nn.Module, pending: Pending, forward: TrainPass) -> tuple[Tensor, Tensor]:
        """Update the weight-prediction network for the pending half step, if that was taken.

        Returns its meta loss, and whether the gradient was finite.
        """
        assert pending.taken is not None
        loss, _ = allocated_loss(
            forward.losses, forward.confidences, self.budget(), self.objective, forward.ranks, forward.share
        )
        with unchanged_gradients():  # the same graph is gone through again for the real step, as gradients flow then
            gradients = total_gradients(loss, trainable(model), forward.ranks, retain_graph=True)
        direction = scale_by_gain(gradients, pending.gain)
        with flowing_as_at(model, pending.progress):
            gradient = weight_gradient(model, pending.params, direction, pending.forward, self.mode)
        finite = forward.ranks.all_true(all_finite(gradient))
        self.learn(pending.forward, gradient, finite & pending.taken)
        return loss.detach(), finite | ~pending.taken

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "pending": self.loaded if self.pending is None else _pack(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.pending, self.loaded = None, state["pending"]


def _without_graph(forward: TrainPass) -> TrainPass:
    return replace(forward, logits=forward.logits.detach(), losses=forward.losses.detach(), extra=None)


_INPUTS = "inputs"
"""What a checkpoint calls the inputs; of several, with their names after it."""

_GENERATORS = ("cpu", "cuda", "python", "numpy")
_TENSORS = ("targets", "logits", "losses", "confidences", "teacher")


def _pack(pending: Pending) -> dict[str, Any]:
    """Return the pending half as all processes hold it together, for a checkpoint.

    A skipped half step will teach nothing: zeros take the place of what is not finite in it.
    """
    forward = pending.forward
    assert pending.taken is not None
    shares = {name: tensor for name in _TENSORS if (tensor := getattr(forward, name)) is not None}
    shares |= {_INPUTS + name: tensor for name, tensor in named(forward.inputs).items()}

    def clean(value: Any) -> Any:
        return value if pending.taken or not isinstance(value, Tensor) else value.nan_to_num(0, 0, 0)

    return {
        "run": {name: clean(value) for name, value in gather_shares(shares, forward.ranks).items()},
        "counts": forward.counts,
        "random": gather_states({name: getattr(forward.random_state, name) for name in _GENERATORS}, forward.ranks),
        "buffers": forward.buffers,
        "autocast": forward.autocast,
        "params": pending.params,
        "gain": {name: clean(value) for name, value in pending.gain.items()},
        "taken": pending.taken,
        "progress": pending.progress,
    }


def _unpack(state: dict[str, Any], like: TrainPass, params: Mapping[str, Tensor]) -> Pending:
    """Return this process's share of a pending half, on the device and among the processes of another pass.

    Tensors get the memory format that the run's inputs and ``params`` have: sums depend on it in their last bits.
    """
    device = device_of(like.inputs)
    ranks = dealt_to(len(state["run"]["targets"]), like.ranks)
    random = own_states(state["random"], ranks)
    assert random["cpu"] is not None

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def as_param(name: str, value: Any) -> Any:
        return torch.empty_like(params[name]).copy_(value) if isinstance(value, Tensor) else value

    parts = {name: move(share) for name, share in deal_shares(state["run"], ranks).items()}
    if not state["taken"]:
        parts["losses"].fill_(torch.nan)  # as they may have been: of a pass that need not come again
    inputs = {name: parts.pop(_INPUTS + name) for name in named(like.inputs)}
    if not isinstance(like.inputs, Tensor):
        parts[_INPUTS] = inputs
    elif like.inputs.dim() == 4 and like.inputs.is_contiguous(memory_format=torch.channels_last):
        parts[_INPUTS] = inputs[""].contiguous(memory_format=torch.channels_last)
    else:
        parts[_INPUTS] = inputs[""]
    forward = TrainPass(
        **parts,
        loss=like.loss,
        counts=move(state.get("counts")),
        random_state=RandomState(
            random["cpu"],
            device,
            random["cuda"] if device.type == "cuda" else None,
            random.get("python"),
            random.get("numpy"),
        ),
        buffers={name: move(value) for name, value in state.get("buffers", {}).items()},
        autocast=state.get("autocast", False),
        ranks=ranks,
        share=ranks.share(parts["confidences"]),
    )
    moved = ({name: as_param(name, value) for name, value in state[key].items()} for key in ("params", "gain"))
    return Pending(forward, next(moved), {}, next(moved), move(state["taken"]), state.get("progress", 0.0))
