"""The gradient of the meta loss with respect to the sample weights, exactly and without second-order autograd.

A network is any module that maps inputs to a sequence of logits, one per exit. Nothing here writes to its
parameters, buffers or optimizer; what to do with the gradient is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from weakref import WeakSet

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from exitwise.budgets import check_proportions
from exitwise.errors import UserError, in_a_line
from exitwise.kernels.channels_last import ChannelsLast
from exitwise.kernels.compiled import is_compiled, uncompiled
from exitwise.kernels.gradients import no_changed_gradients, unchanged_gradients
from exitwise.kernels.inputs import Inputs, device_of
from exitwise.kernels.tangents import KeptOutputs, TangentRules
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.shapes import Float, Int
from exitwise.weighting.allocation import Objective, allocate, meta_loss
from exitwise.weighting.lookahead import look_ahead
from exitwise.weighting.losses import Loss, Targets
from exitwise.weighting.normalize import weighted_loss
from exitwise.weighting.replay import RandomState, check_repeats

GradientMode = Literal["forward", "double-backward", "finite-difference"]
Batch = (
    tuple[Inputs, Int[Tensor, "meta"] | Float[Tensor, "meta classes"]]
    | tuple[Inputs, Int[Tensor, "meta"], Float[Tensor, "meta classes"]]
)
"""Inputs and class indices, or probabilities of classes; where a teacher is learned from, its logits too."""


@dataclass(frozen=True)
class TrainPass:
    """One forward pass of a network over a half batch, with its autograd graph.

    Attributes:
        inputs, targets: the half batch, with class indices or probabilities of classes.
        logits: with graph.
        losses: of each sample at each exit, with graph; see :meth:`~exitwise.weighting.losses.Loss.of`.
        confidences: max softmax of each sample at each exit, detached.
        loss, teacher: what ``losses`` were computed with.
        random_state: generator states before the pass, so that dropout can be replayed (not that of a network compiled
            without the compiler's ``fallback_random``, which draws its own numbers).
        buffers: the network's before the pass, by name, so that what it reads and updates can be read again.
        autocast: whether it ran in mixed precision.
        kept: outputs of its layers that forward mode need not compute again; None if they were not kept.
        ranks: the processes to which the half batch was dealt; this is the pass over one share.
        share: which part of the half batch that is.
        extra: what is learned besides, with graph; None: nothing.
        counts: what each exit counts in training, beside all weights; None: 1. The meta loss knows nothing of it.
    """

    inputs: Inputs
    targets: Targets
    logits: Float[Tensor, "batch exits classes"]
    losses: Float[Tensor, "batch exits"]
    confidences: Float[Tensor, "batch exits"]
    loss: Loss
    random_state: RandomState
    buffers: dict[str, Tensor]
    autocast: bool
    kept: KeptOutputs | None = None
    ranks: Ranks = ALONE
    share: Float[Tensor, ""] | float = 1.0
    teacher: Float[Tensor, "batch classes"] | None = None
    extra: Float[Tensor, ""] | None = None
    counts: Float[Tensor, "exits"] | None = None

    def training_loss(self, weights: Float[Tensor, "batch exits"]) -> Float[Tensor, ""]:
        """Return what the network is trained on with these weights, as if the share were the half batch."""
        loss = weighted_loss(self.losses, weights if self.counts is None else weights * self.counts)
        return loss if self.extra is None else loss + self.extra


class MetaGradient(NamedTuple):
    """Result of :func:`meta_gradient`.

    Attributes:
        weights: d meta loss / d weights.
        loss: the meta loss, detached.
        allocation: exit (0-based) that each meta sample was allocated to.
    """

    weights: Float[Tensor, "batch exits"]
    loss: Float[Tensor, ""]
    allocation: Int[Tensor, "meta"]


def train_pass(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets,
    loss: Loss | None = None,
    *,
    keep: bool = False,
    ranks: Ranks = ALONE,
    teacher: Float[Tensor, "batch classes"] | None = None,
) -> TrainPass:
    """Run ``model`` on a half batch and keep what the weighting needs.

    Args:
        model: maps ``inputs`` to a sequence of logits (batch, classes), one per exit.
        inputs: of the samples.
        targets: class indices, or probabilities of classes.
        loss: what exits learn from; None: the labels.
        teacher: a teacher's logits for the samples, where ``loss`` takes them.
        keep: keep what its layers compute; that makes forward mode over this pass cheaper.
        ranks: the processes to which the half batch was dealt; the inputs are this one's share.

    Raises:
        ValueError: if the model returns a single tensor.
    """
    random_state = RandomState.capture(device_of(inputs), model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    autocast = torch.is_autocast_enabled(device_of(inputs).type)  # whose products have another precision
    keep = keep and not autocast
    kept = KeptOutputs() if keep else None
    with kept or nullcontext():
        outputs = model(inputs)
    if isinstance(outputs, Tensor):
        raise ValueError(f"expected a model that returns a list of logits, one per exit; got a tensor {outputs.shape}")
    if not random_state.is_current() and any(map(is_compiled, model.modules())):
        kept = None  # compiled code may draw its own random numbers: forward mode will have another dropout mask
    logits = _stacked(outputs)
    loss = loss or Loss()
    losses = loss.of(logits, targets, teacher)
    confidences = exit_confidences(logits)
    share = ranks.share(confidences)
    return TrainPass(
        *(inputs, targets, logits, losses, confidences, loss, random_state, buffers),
        *(autocast, kept, ranks, share, teacher, loss.extra(logits, targets)),
    )


def with_teacher(batch: Batch) -> tuple[Inputs, Tensor, Tensor | None]:
    """Return inputs, targets and a teacher's logits, None if there are none."""
    return (*batch, None) if len(batch) == 2 else batch


def exit_confidences(logits: Float[Tensor, "batch exits classes"]) -> Float[Tensor, "batch exits"]:
    """Return the max softmax of each sample at each exit, detached."""
    return logits.detach().softmax(dim=-1).amax(dim=-1)


def meta_gradient(
    model: nn.Module,
    optimizer: Optimizer,
    forward: TrainPass,
    weights: Float[Tensor, "batch exits"],
    meta: Batch,
    proportions: Sequence[float],
    *,
    objective: Objective = "share-weighted",
    mode: GradientMode = "forward",
) -> MetaGradient:
    """d meta loss / d weights, through the look-ahead step that the weights cause.

    The look-ahead parameters are what ``optimizer`` would make of the gradient of the weighted training
    loss; the meta loss is the loss of the meta half batch there, each sample at the exit that
    ``proportions`` allocate it to (docs/method.md, eqs. 3 to 7). Neither the network's parameters and
    buffers nor the optimizer are changed, and the graph of ``forward`` stays usable for the real step.

    Args:
        model: the network, in the mode (train or eval) that it trains in.
        optimizer: SGD, Adam or AdamW over the network's parameters.
        forward: the forward pass over the train half, at the current parameters.
        weights: sample weights of that half; only their values are used.
        meta: inputs and targets of the meta half, and a teacher's logits if ``forward`` has them.
        proportions: share of samples leaving at each exit.
        objective: see :func:`~exitwise.weighting.allocation.meta_loss`.
        mode: ``forward`` needs one forward-mode pass over the train half; ``double-backward`` differentiates
            through the look-ahead gradient, at several times the cost, and serves as the oracle;
            ``finite-difference`` needs one plain forward pass and is accurate to some percent (see
            :func:`loss_tangents`).

    Returns:
        The gradient, to be handed to ``weights.backward(gradient)``, the meta loss and the allocation.

    Raises:
        ValueError: for an unknown mode, an optimizer without look-ahead, an operator without forward mode,
            wrong proportions, weights of another shape than the losses, or a model without parameters to train.
    """
    check_mode(mode)
    params = trainable(model)
    if not params:
        raise ValueError("expected parameters that require gradients; the model has none")
    if weights.shape != forward.losses.shape:
        raise ValueError(f"expected weights of shape {tuple(forward.losses.shape)}; got {tuple(weights.shape)}")
    proportions = check_proportions(proportions, forward.losses.shape[1])
    weights = weights.detach()
    if mode == "double-backward":
        if forward.ranks.size > 1:
            raise ValueError("double backward is for one process (mode 'forward' is exact and cheaper)")
        training_loss = forward.training_loss(weights.requires_grad_())
        with _differentiated_twice():
            gradients = gradients_of(training_loss, params, retain_graph=True, create_graph=True)
            ahead = look_ahead(optimizer, params, gradients)
            loss, allocation = _loss_at(model, ahead.params, forward, meta, proportions, objective)
            (gradient,) = torch.autograd.grad(loss, weights)
        return MetaGradient(gradient, loss.detach(), allocation)

    training_loss = forward.training_loss(weights) * forward.share
    ahead = look_ahead(optimizer, params, total_gradients(training_loss, params, forward.ranks, retain_graph=True))
    at = {name: param.detach().requires_grad_() for name, param in ahead.params.items()}
    loss, allocation = _loss_at(model, at, forward, meta, proportions, objective)
    direction = scale_by_gain(total_gradients(loss, at, forward.ranks), ahead.gain)
    return MetaGradient(weight_gradient(model, params, direction, forward, mode), loss.detach(), allocation)


def allocated_loss(
    losses: Float[Tensor, "batch exits"],
    confidences: Float[Tensor, "batch exits"],
    proportions: Sequence[float],
    objective: Objective,
    ranks: Ranks = ALONE,
    share: Float[Tensor, ""] | float = 1.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, "batch"]]:
    """Return what a process's share of a half batch adds to the meta loss, and the exit of each of its samples.

    Args:
        losses, confidences: of the share.
        proportions, objective: as for :func:`meta_gradient`.
        ranks: the processes. Where they allocate together, the loss returned is that of all shares, of which this one's
            alone is differentiable.
        share: which part of the half batch it is.
    """
    if ranks.scope.size == 1:
        allocation = allocate(confidences, proportions)
        return meta_loss(losses, allocation, objective) * share, allocation
    everyone, own = ranks.scope.gather(torch.cat([losses, confidences], dim=1))
    losses, confidences = everyone.chunk(2, dim=1)
    allocation = allocate(confidences, proportions)
    return meta_loss(losses, allocation, objective), allocation[own]


def total_gradients(
    loss: Float[Tensor, ""], params: Mapping[str, Tensor], ranks: Ranks, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """:func:`gradients_of` a loss that is the sum of what the processes' shares add to it."""
    gradients = gradients_of(loss, params, retain_graph=retain_graph)
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    return {**gradients, **dict(zip(present, ranks.sum_all(list(present.values())), strict=True))}


def weight_gradient(
    model: nn.Module,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    forward: TrainPass,
    mode: GradientMode,
) -> Float[Tensor, "batch exits"]:
    """Return d meta loss / d weights, given the meta loss's gradient times the look-ahead's gain as ``direction``.

    As if the share were the half batch; the gradient over all shares is ``forward.share`` times this.
    """
    tangents = loss_tangents(model, params, direction, forward, mode)
    if forward.counts is not None:
        tangents = tangents * forward.counts
    return -tangents / len(tangents)


def scale_by_gain(gradients: Mapping[str, Tensor | None], gain: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Return the direction ``D * v`` for forward mode: ``v`` times the look-ahead's gain on a fresh gradient."""
    return {
        name: gain[name] * gradient for name, gradient in gradients.items() if gradient is not None and name in gain
    }


def loss_tangents(
    model: nn.Module,
    params: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
    forward: TrainPass,
    mode: GradientMode = "forward",
) -> Float[Tensor, "batch exits"]:
    """Return the directional derivative of each loss of ``forward`` along ``tangents``.

    Args:
        model: the network in the same mode as in ``forward``.
        params: the parameters at which ``forward`` was made.
        tangents: name to direction; parameters without one stay constant.
        forward: the forward pass to differentiate; its random numbers are drawn again, and its buffers read again.
        mode: ``forward``: one forward-mode pass; ``double-backward``: reverse over reverse;
            ``finite-difference``: ``(losses(params + h * tangents) - losses) / h`` with
            ``h = sqrt(machine epsilon) / ||tangents||``, 3.5e-4 over the norm in float32. It is off by some
            percent in float32: too large a step bends, too small a one drowns in rounding.

    Autocast is left aside here, since tangents are computed in the parameters' precision, and in forward mode
    torch.compile too.

    Raises:
        ValueError: for an unknown mode, finite differences of losses in half precision or of a network whose backward
            pass is another than its function's, or a network that gives other losses when its pass is run again; names
            the module.
    """
    check_mode(mode)
    device = forward.logits.device.type
    if mode == "finite-difference" and torch.is_autocast_enabled(device):
        raise ValueError("finite differences need losses in float32; autocast is on (mode 'forward' takes both)")
    if not tangents:
        return torch.zeros_like(forward.losses)
    with forward.random_state.replayed(), torch.autocast(device, enabled=False):
        if mode == "forward":
            return _forward_mode(model, params, tangents, forward)
        if mode == "double-backward":
            return _reverse_over_reverse(model, params, tangents, forward)
        return _finite_difference(model, params, tangents, forward)


def _losses_at(model: nn.Module, params: Mapping[str, Tensor], forward: TrainPass) -> Tensor:
    logits = call_with(model, {**params, **forward.buffers}, forward.inputs)
    return forward.loss.of(logits, forward.targets, forward.teacher)


def _forward_mode(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    with torch.enable_grad(), forward_ad.dual_level():  # nothing requires a gradient: no graph is made
        constants = {name: param.detach() for name, param in params.items()}
        duals = {name: forward_ad.make_dual(constants[name], tangent) for name, tangent in tangents.items()}
        try:
            # Of the attention kernels, only the plain one has a forward-mode rule.
            with sdpa_kernel(SDPBackend.MATH), uncompiled(), TangentRules(forward.kept):
                losses = _losses_at(model, {**constants, **duals}, forward)
        except NotImplementedError as error:
            raise ValueError(
                f"forward mode met an operator without a rule for it: {str(error).splitlines()[0]} "
                "(mode 'double-backward' or 'finite-difference' may work)"
            ) from error
        primal, tangent = forward_ad.unpack_dual(losses)
        result = torch.zeros_like(losses) if tangent is None else tangent.detach()
    _check_repeats(model, constants, forward, primal)
    return result


def _reverse_over_reverse(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    at = {name: params[name].detach().requires_grad_() for name in tangents}
    losses = _losses_at(model, {**params, **at}, forward)
    _check_repeats(model, params, forward, losses)
    cotangent = torch.ones_like(losses, requires_grad=True)
    with _differentiated_twice():
        backward = gradients_of((losses * cotangent).sum(), at, create_graph=True)
        products = [(gradient * tangents[name]).sum() for name, gradient in backward.items() if gradient is not None]
        return torch.autograd.grad(torch.stack(products).sum(), cotangent)[0]


@contextmanager
def _differentiated_twice() -> Iterator[None]:
    """Raise UserError where an operator has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("derivative for"):
            raise
        raise UserError(
            f"expected operators that can be differentiated twice; {in_a_line(error)} (mode 'forward' is exact and "
            "cheaper)"
        ) from error


def _finite_difference(
    model: nn.Module, params: Mapping[str, Tensor], tangents: Mapping[str, Tensor], forward: TrainPass
) -> Tensor:
    precision = next(iter(tangents.values())).dtype
    if precision not in (torch.float32, torch.float64):
        raise ValueError(f"finite differences need float32 or float64; got {precision} (mode 'forward' is exact)")
    root: float = torch.finfo(precision).eps ** 0.5
    norm = torch.nn.utils.get_total_norm(tangents.values())
    step = root / norm.clamp_min(torch.finfo(precision).tiny / root)
    with torch.no_grad(), no_changed_gradients():
        _check_repeats(model, params, forward)
        steps = torch._foreach_mul(list(tangents.values()), step)
        moved = dict(zip(tangents, torch._foreach_add([params[name] for name in tangents], steps), strict=True))
        return (_losses_at(model, {**params, **moved}, forward) - forward.losses.detach()) * (norm / root)


_REPEATED: WeakSet[nn.Module] = WeakSet()
"""Networks whose pass was run again, and gave the same."""


def _check_repeats(
    model: nn.Module, params: Mapping[str, Tensor], forward: TrainPass, again: Tensor | None = None
) -> None:
    """Raise ValueError unless the pass gives the same losses when it is run again.

    Once for each network, as that costs a pass; and for ``again``, the losses of a repetition that was made anyway,
    where looking at them means no waiting for a device.
    """
    if forward.autocast or any(map(is_compiled, model.modules())):
        return

    def run() -> Tensor:
        with forward.random_state.replayed(), torch.no_grad():
            return _losses_at(model, params, forward)

    if again is not None and again.device.type == "cpu":
        check_repeats(forward.losses, again, model, run)
    if model not in _REPEATED:
        check_repeats(forward.losses, run(), model, run)
        _REPEATED.add(model)


def check_mode(mode: str) -> None:
    """Raise ValueError unless ``mode`` is a :data:`GradientMode` that is possible here."""
    if mode == "double-backward" and ChannelsLast.depth:
        raise ValueError("channels-last operators cannot be differentiated twice (mode 'forward' is exact and cheaper)")
    if mode not in get_args(GradientMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(GradientMode))}; got {mode!r}")


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return name to parameter, of those that require gradients."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def call_with(model: nn.Module, params: Mapping[str, Tensor], inputs: Inputs) -> Float[Tensor, "batch exits classes"]:
    """Return the logits of ``model`` with some parameters or buffers replaced; its own buffers are left untouched.

    Raises:
        ValueError: if a layer with parameters or buffers stands in the network under two names.
    """
    _check_stands_once(model)
    buffers = {name: params.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    return _stacked(functional_call(model, {**params, **buffers}, (inputs,)))


def _check_stands_once(model: nn.Module) -> None:
    """torch.func.functional_call would leave plain tensors in the place of such a layer's parameters."""
    seen: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if (module._parameters or module._buffers) and seen.setdefault(module, name) != name:
            raise ValueError(
                f"a layer stands in the network as {seen[module]!r} and as {name!r}: let two layers share their "
                f"parameters instead ({name}.weight = {seen[module]}.weight)"
            )


def _stacked(outputs: Iterable[Tensor]) -> Float[Tensor, "batch exits classes"]:
    """Return the logits of all exits as one tensor, in single precision at least."""
    logits = torch.stack(list(outputs), dim=1)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _loss_at(
    model: nn.Module,
    params: Mapping[str, Tensor],
    forward: TrainPass,
    meta: Batch,
    proportions: Sequence[float],
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    inputs, targets, teacher = with_teacher(meta)
    with unchanged_gradients():  # how gradients flow in training is no part of what is to be achieved
        logits = call_with(model, params, inputs)
    losses = forward.loss.of(logits, targets, teacher)
    confidences, share = exit_confidences(logits), forward.ranks.share(losses)
    return allocated_loss(losses, confidences, proportions, objective, forward.ranks, share)


def gradients_of(
    loss: Float[Tensor, ""], params: Mapping[str, Tensor], retain_graph: bool = False, create_graph: bool = False
) -> dict[str, Tensor | None]:
    """Return name to gradient of a scalar; None for parameters that it does not depend on."""
    gradients = torch.autograd.grad(
        loss, list(params.values()), retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
    )
    return dict(zip(params, gradients, strict=True))
