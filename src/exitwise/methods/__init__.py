"""Training methods and what they are made of, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitwise.catalogue.flows import FLOWS
from exitwise.catalogue.lookup import find
from exitwise.catalogue.losses import LOSSES
from exitwise.catalogue.methods import find_method, method_names
from exitwise.catalogue.options import Options, Surroundings
from exitwise.catalogue.parts import Part
from exitwise.catalogue.schedules import SCHEDULES
from exitwise.errors import UserError
from exitwise.methods.base import Method, Weighting
from exitwise.methods.flow.base import GradientFlow
from exitwise.methods.schedules.backbone_first import BackboneFirst
from exitwise.methods.schedules.base import Schedule
from exitwise.methods.weights.meta_weighted import MetaWeighted
from exitwise.methods.weights.shared_step import SharedStep
from exitwise.methods.weights.uniform import Uniform
from exitwise.weighting.losses import Loss

__all__ = [
    "BackboneFirst",
    "GradientFlow",
    "MetaWeighted",
    "Method",
    "SharedStep",
    "Uniform",
    "Weighting",
    "build_loss",
    "build_method",
    "create_flow",
    "create_loss",
    "create_method",
    "in_schedule",
    "list_methods",
]


def list_methods() -> list[str]:
    """Return the names that :func:`create_method` knows."""
    return method_names()


def create_method(name: str, **options: Any) -> Method:
    """Build a training method.

    Args:
        name: one of :func:`list_methods`, or ``package.module:name``.
        options: arguments of its class (see :class:`Uniform`), or of the class's ``create`` (see
            :meth:`MetaWeighted.create`).

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one).
    """
    found = _load(find_method(name))
    return found.create(**options) if isinstance(found, type) else found


def build_method(name: str, options: Options, exits: int, *, fused: bool = False) -> Method:
    """Build a training method from its options, for a network with that many exits; see :meth:`Method.from_options`.

    Raises:
        ValueError: for an unknown name, or options that do not suit that many exits.
    """
    options.check(Surroundings(exits))
    found = _load(find_method(name))
    return found.from_options(options, exits, fused=fused) if isinstance(found, type) else found


def create_flow(name: str, **options: Any) -> GradientFlow:
    """Build a rule of how gradients flow between stages, to be set as a network's ``flow``.

    Args:
        name: one that ``exitwise methods`` lists, such as ``equilibrium``.
        options: of that part.

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one).
    """
    flow: GradientFlow = find(FLOWS, name, "flow").load()(**options)
    return flow


def create_loss(name: str, *, label_smoothing: float = 0.0, **options: Any) -> Loss:
    """Build what exits learn from.

    Args:
        name: one that ``exitwise methods`` lists, such as ``distil-next``.
        label_smoothing: of the cross-entropy.
        options: of that part.

    Raises:
        ValueError: for an unknown name (a UserError, with the nearest known one).
    """
    loss: Loss = find(LOSSES, name, "loss").load()(label_smoothing=label_smoothing, **options)
    return loss


def build_loss(
    name: str, options: Options, label_smoothing: float = 0.0, class_counts: Sequence[int] | None = None
) -> Loss:
    """Build what exits learn from, from its options; see :meth:`Loss.from_options`."""
    loss: Loss = find(LOSSES, name, "loss").load().from_options(options, label_smoothing, class_counts)
    return loss


def in_schedule(name: str, method: Method, options: Options, batches_per_epoch: int) -> Method:
    """Return a method in a schedule of what trains when; see :meth:`Schedule.around`."""
    schedule: type[Schedule] = find(SCHEDULES, name, "regime").load()
    return schedule.around(method, options, batches_per_epoch)


def _load(part: Part) -> type[Method] | Method:
    found = part.load()
    if not (isinstance(found, Method) or (isinstance(found, type) and issubclass(found, Method))):
        raise UserError(f"expected a training method at {part.path}; got {found!r:.80}")
    if (found if isinstance(found, type) else type(found)).weigh is Method.weigh:
        raise UserError(f"expected a training method with weigh at {part.path}; {found!r:.80} has none")
    return found
