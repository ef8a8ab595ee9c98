"""Exits on any classifier, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from exitwise.budgets import check_whole
from exitwise.errors import UserError, in_a_line
from exitwise.kernels.inputs import Inputs, batch_of, described, device_of, example_of, has_tokens, shortened, varied
from exitwise.kernels.modes import evaluating
from exitwise.models.backbones.backbone import answer, cannot_split, check_whole_numbers, unchanged, unwrapped
from exitwise.models.backbones.cut import staged
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.latency import by_latency
from exitwise.models.backbones.places import ExitPoint, choose, find_places
from exitwise.models.backbones.tracing import Traced, trace
from exitwise.models.backbones.whole import left_whole
from exitwise.models.heads import HeadFactory
from exitwise.models.staged import Stage, StagedModel, State

PlaceBy = Literal["macs", "latency"]
"""What the places of exits are equal shares of."""


def add_exits(
    backbone: nn.Module,
    exits: int | None = None,
    *,
    at: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str | HeadFactory = "auto",
    example: Inputs | None = None,
    input_shape: tuple[int, ...] = (3, 224, 224),
    skip: bool = True,
    place_by: PlaceBy = "macs",
) -> ExitedModel:
    """Put early exits on a classifier, which stays as it is and becomes the last exit.

    The result shares the backbone's parameters and buffers. In eval mode its last logits are the backbone's own,
    bit for bit; in train mode dropout, stochastic depth and BatchNorm work as in the backbone.

    Args:
        backbone: maps its inputs to logits (B, C), or to an object or mapping with ``logits``. Of a wrapper for several
            devices or of torch.compile, the network in it. Heads have the type of the floats that they see.
        exits: number of exits K, the last one included (1: no early one); the others are put near equal shares of the
            backbone's cost. 4 if neither this nor ``at`` is given.
        at: name or names of submodules to put exits after, in order; the last exit is added to them.
        num_classes: number of classes C; only to be checked against the backbone's.
        head: ``auto``: suited to the feature (see :func:`~exitwise.models.heads.suited_head`); ``linear``: pooling and
            one linear layer; or a function of (:class:`~exitwise.models.heads.Feature`, C) that returns a module.
        example: example inputs, batch first, where the network lies: a tensor, such as (B, channels, length) or
            (B, features), or a mapping of tensors by the names of the network's arguments, such as ``input_ids`` and
            ``attention_mask``. Costs are those of its first row.
        input_shape: in its place, (channels, height, width) of the images that it is meant for.
        skip: cut the backbone into stages. If False, it is left whole: all exits are evaluated together, and
            nothing is saved at inference. For networks that cannot be cut.
        place_by: what equal shares are of: ``macs``, multiply-accumulates; or ``latency``, the time of one sample as
            measured here and now, where the network lies, in eager mode and with the exits' own.

    Raises:
        UserError: for a name that is no exit point (lists those that are), more exits than there are places, example
            inputs that the network does not take, or ``place_by`` where there are no places to choose.
        CannotSplitError: if the network decides by what it computes; names the module.
    """
    at = [at] if isinstance(at, str) else at
    if exits is not None and at is not None:
        raise UserError(f"expected exits or at, not both; got {exits} and {list(at)}")
    _check_place_by(place_by, at, skip)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"expected a network as a torch.nn.Module; got a {type(backbone).__name__}")
    backbone = unwrapped(backbone)
    check_whole_numbers(backbone)
    exits = 4 if exits is None else check_whole("exits (the network's own is one)", exits, 1)
    if next(backbone.parameters(), None) is None:
        raise UserError(f"expected a network with parameters; {type(backbone).__name__} has none")
    with evaluating(backbone), unchanged(backbone):
        example = _checked(example, input_shape, backbone)
        classes = count_classes(backbone, example, num_classes)
        if skip:
            traced = trace(backbone, example)
            places = find_places(traced, backbone, example)
            like = next(backbone.parameters())
            among = places if place_by == "macs" else by_latency(traced, places, classes, head, example, like)
            points = [places[point.name].point for point in choose(among, exits, at, _hint(traced))]
            model = staged(traced, places, points, classes, head, example, like).to(like.device)
            inputs = varied(example, 3, like)
            for batch in (inputs, batch_of(inputs, 1, like), *([shortened(inputs)] if has_tokens(example) else [])):
                _check_same(backbone, model, batch)
        else:
            model = left_whole(backbone, exits, at, classes, head, example)
        if callable(head):
            _check_heads(model)
    model.head = head if isinstance(head, str) else "own"
    model.made = model.digests() if isinstance(head, str) else []
    own = {id(module) for module in backbone.modules()}
    for module in model.modules():
        if id(module) not in own:
            module.training = backbone.training
    return model


def _check_place_by(place_by: str, at: Sequence[str] | None, skip: bool) -> None:
    if place_by not in get_args(PlaceBy):
        raise UserError(f"place_by must be {' or '.join(get_args(PlaceBy))}; got {place_by!r}")
    if place_by != "macs" and (at is not None or not skip):
        other = "at, which gives the places" if at is not None else "skip=False, which saves no time"
        raise UserError(f"place_by chooses places; got {place_by} with {other}")


def exit_points(
    backbone: nn.Module, input_shape: tuple[int, ...] = (3, 224, 224), *, example: Inputs | None = None
) -> list[ExitPoint]:
    """Return where exits can go, cheap to dear; see :func:`add_exits`."""
    backbone = unwrapped(backbone)
    example = _checked(example, input_shape, backbone)
    with evaluating(backbone), unchanged(backbone):
        count_classes(backbone, example, None)
    points = [place.point for place in find_places(trace(backbone, example), backbone, example).values()]
    return [point for point in points if point.feature.kind != "unknown"]


def _checked(example: Inputs | None, input_shape: tuple[int, ...], backbone: nn.Module) -> Inputs:
    """Return example inputs as networks with exits hold them."""
    inputs = example_of(example, input_shape)
    device = next(backbone.parameters()).device
    if example is not None and device_of(inputs) != device:
        raise UserError(f"expected example inputs on {device}, where the network lies; got them on {device_of(inputs)}")
    return inputs


def _hint(traced: Traced) -> str:
    if not traced.whole:
        return ""
    return f"; module {', '.join(traced.whole)} decides by what it computes and stays whole"


def count_classes(backbone: nn.Module, example: Inputs, expected: int | None, kind: str = "") -> int:
    """Return the number of a classifier's classes, from a run in the mode that it is in; ``kind``: what to call it.

    Raises:
        UserError: if it does not take the example, is no classifier, or has not the ``expected`` classes.
    """
    inputs = batch_of(example, 2, next(backbone.parameters()))
    kind = kind or type(backbone).__name__
    try:
        with torch.no_grad():
            output = answer(backbone, inputs)
    except Exception as error:  # of whatever kind a stranger's network raises
        said = str(error).strip().splitlines()
        raise UserError(
            f"expected inputs that {kind} takes; it fails on {described(inputs)}, by {type(error).__name__}: "
            f"{said[0] if said else 'no reason given'} (example= says what else it takes)"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else described(output)
        raise UserError(f"expected a classifier that maps 2 samples to logits (2, C); {kind} gives {shape}")
    if expected is not None and output.shape[1] != expected:
        raise UserError(
            f"expected a backbone for {expected} classes; {kind} has {output.shape[1]} "
            "(its classifier is kept as the last exit: build it for your classes)"
        )
    return output.shape[1]


def _check_heads(model: StagedModel) -> None:
    """Raise UserError unless heads that a function made give logits."""
    inputs = batch_of(model.example, 2, next(model.parameters()))
    wanted = f"expected logits (2, {model.num_classes}) of 2 samples from what the head function made for exit"
    with torch.no_grad(), evaluating(model):
        state: State = inputs
        for k, stage in enumerate(cast("list[Stage]", list(model.stages))[:-1], start=1):
            state = stage.body(state)
            try:
                logits = stage.head(state)
            except Exception as error:  # of whatever kind a stranger's module raises
                raise UserError(f"{wanted} {k}; it fails by {type(error).__name__}: {in_a_line(error)}") from error
            if not isinstance(logits, Tensor) or logits.shape != (2, model.num_classes):
                found = tuple(logits.shape) if isinstance(logits, Tensor) else described(logits)
                raise UserError(f"{wanted} {k}; got {found}")


def _check_same(backbone: nn.Module, model: StagedModel, inputs: Inputs) -> None:
    """Raise CannotSplitError unless the stages give the backbone's logits, at sizes other than the trace's."""
    with torch.no_grad(), evaluating(model), redirect_stderr(StringIO()):  # where torch.fx prints where a graph failed
        try:
            with unchanged(backbone):
                expected = answer(backbone, inputs)
            with unchanged(backbone):
                same = torch.equal(expected, model.forward_last(inputs))
        except (RuntimeError, TypeError, ValueError) as error:
            raise cannot_split(backbone, str(error)) from error
    if not same:
        raise cannot_split(backbone, "run in parts it gives other logits than whole")
