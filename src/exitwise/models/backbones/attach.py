"""Exits on any image classifier, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exitwise.errors import UserError
from exitwise.kernels.modes import evaluating
from exitwise.models.backbones.backbone import cannot_split, logits_of, unchanged
from exitwise.models.backbones.cut import staged
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.places import ExitPoint, choose, find_places
from exitwise.models.backbones.tracing import Traced, trace
from exitwise.models.backbones.whole import left_whole
from exitwise.models.heads import HeadFactory
from exitwise.models.staged import StagedModel


def add_exits(
    backbone: nn.Module,
    exits: int | None = None,
    *,
    at: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str | HeadFactory = "auto",
    input_shape: tuple[int, int, int] = (3, 224, 224),
    skip: bool = True,
) -> ExitedModel:
    """Put early exits on a classifier, which stays as it is and becomes the last exit.

    The result shares the backbone's parameters and buffers. In eval mode its last logits are the backbone's own,
    bit for bit; in train mode dropout, stochastic depth and BatchNorm work as in the backbone.

    Args:
        backbone: maps images (B, channels, height, width) to logits (B, C), or to an object with ``logits``.
        exits: number of exits K, the last one included (1: no early one); the others are put near equal shares of the
            backbone's multiply-accumulates. 4 if neither this nor ``at`` is given.
        at: names of submodules to put exits after, in order; the last exit is added to them.
        num_classes: number of classes C; only to be checked against the backbone's.
        head: ``auto``: suited to the feature (see :func:`~exitwise.models.heads.suited_head`); ``linear``: pooling and
            one linear layer; or a function of (:class:`~exitwise.models.heads.Feature`, C) that returns a module.
        input_shape: (channels, height, width) of the images that it is meant for.
        skip: cut the backbone into stages. If False, it is left whole: all exits are evaluated together, and
            nothing is saved at inference. For networks that cannot be cut.

    Raises:
        UserError: for a name that is no exit point (lists those that are), or more exits than there are places.
        CannotSplitError: if the network decides by what it computes; names the module.
    """
    if exits is not None and at is not None:
        raise UserError(f"expected exits or at, not both; got {exits} and {list(at)}")
    exits = 4 if exits is None else exits
    if next(backbone.parameters(), None) is None:
        raise UserError(f"expected a network with parameters; {type(backbone).__name__} has none")
    with evaluating(backbone), unchanged(backbone):
        classes = _count_classes(backbone, input_shape, num_classes)
        if skip:
            traced = trace(backbone, input_shape)
            places = find_places(traced, backbone, input_shape[1:])
            points = choose(places, exits, at, _hint(traced))
            model = staged(traced, places, points, classes, head, input_shape).to(next(backbone.parameters()).device)
            for samples in (3, 1):
                _check_same(backbone, model, samples)
        else:
            model = left_whole(backbone, exits, at, classes, head, input_shape)
    own = {id(module) for module in backbone.modules()}
    for module in model.modules():
        if id(module) not in own:
            module.training = backbone.training
    return model


def exit_points(backbone: nn.Module, input_shape: tuple[int, int, int] = (3, 224, 224)) -> list[ExitPoint]:
    """Return where exits can go, cheap to dear; see :func:`add_exits`."""
    return [place.point for place in find_places(trace(backbone, input_shape), backbone, input_shape[1:]).values()]


def _hint(traced: Traced) -> str:
    if not traced.whole:
        return ""
    return f"; module {', '.join(traced.whole)} decides by what it computes and stays whole"


def _count_classes(backbone: nn.Module, input_shape: tuple[int, int, int], expected: int | None) -> int:
    parameter = next(backbone.parameters())
    images = torch.zeros(2, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        output = logits_of(backbone(images))
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"expected a classifier that maps 2 images to logits (2, C); {type(backbone).__name__} gives {shape}"
        )
    if expected is not None and output.shape[1] != expected:
        raise UserError(
            f"expected a backbone for {expected} classes; {type(backbone).__name__} has {output.shape[1]} "
            "(its classifier is kept as the last exit: build it for your classes)"
        )
    return output.shape[1]


def _check_same(backbone: nn.Module, model: StagedModel, samples: int) -> None:
    """Raise CannotSplitError unless the stages give the backbone's logits, at a batch size other than the trace's."""
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, *model.input_shape, generator=generator).to(parameter.device, parameter.dtype)
    with torch.no_grad(), evaluating(model):
        try:
            with unchanged(backbone):
                expected = logits_of(backbone(images))
            with unchanged(backbone):
                same = torch.equal(expected, model.forward_last(images))
        except (RuntimeError, TypeError, ValueError) as error:
            raise cannot_split(backbone, str(error)) from error
    if not same:
        raise cannot_split(backbone, "run in parts it gives other logits than whole")
