"""What each sample's loss counts at each exit, with options: the training methods that a user names.

Others join from outside: by an entry point of the group ``exitwise.methods`` or by ``package.module:name`` in place of
a name. Either leads to a :class:`~exitwise.methods.base.Method`, or to a :class:`~exitwise.catalogue.parts.Part` where
torch is not to be imported before it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from exitwise.budgets import check_count
from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name
from exitwise.catalogue.options import Options, Surroundings, option
from exitwise.catalogue.parts import Part
from exitwise.errors import UserError, near_match

_HOME = "exitwise.methods.weights"
GROUP = "exitwise.methods"
"""Of entry points, under which other packages register methods."""


@dataclass(frozen=True)
class UniformOptions(Options):
    """Options of ``uniform``."""

    weighs_alone: ClassVar[bool] = True

    exit_weights: Sequence[float] | None = option(None, "Weight of each exit, all 1 if unset.", ge=0)

    def check(self, around: Surroundings) -> None:
        check_count("exit_weights", self.exit_weights, around.exits)


@dataclass(frozen=True)
class MetaWeightedOptions(Options):
    """Options of ``meta-weighted`` and its variants."""

    looks_ahead: ClassVar[bool] = True

    p: float = option(0.75, "Budget to train for: share k of exits is p^k, normalised.", gt=0)
    proportions: Sequence[float] | None = option(None, "Budget to train for as shares; overrides p.", ge=0)
    p_range: Sequence[float] | None = option(
        None, "LOW HIGH: draw p anew for each meta step, uniformly between them; overrides p.", gt=0
    )
    objective: Literal["share-weighted", "per-exit"] = option("share-weighted", "Meta objective.")
    gradient: Literal["forward", "double-backward", "finite-difference"] = option(
        "forward", "How the meta-gradient is computed."
    )
    epsilon: float = option(0.8, "Scale of the sample weights: within 1 +- 2 epsilon.", ge=0)
    centering: Literal["exits", "samples", "all"] = option("exits", "The set over which weights average to 1.")
    meta_interval: int = option(1, "Update the weight network every so many loaded batches.", ge=1, le=10**9)
    wpn_input: Literal["loss", "conf", "both"] = option("loss", "What the weight network sees.")
    wpn_hidden: int = option(500, "Width of its hidden layers.", ge=1, le=65536)
    wpn_layers: int = option(1, "Number of its hidden layers.", ge=1, le=100)
    wpn_zero_init: bool = option(True, "Start with all weights at exactly 1.")
    wpn_lr: float = option(1e-3, "Learning rate of the weight network (Adam).", gt=0)
    wpn_weight_decay: float = option(1e-4, "Weight decay of the weight network.", ge=0)

    def __post_init__(self) -> None:
        if self.proportions is not None and abs(sum(self.proportions) - 1) > 1e-6:
            raise ValueError(
                f"proportions must sum to 1; got {self.proportions}, which sum to {sum(self.proportions):.6g}"
            )
        if self.p_range is not None and (len(self.p_range) != 2 or self.p_range[0] > self.p_range[1]):
            raise ValueError(f"p_range needs two numbers, the lower first; got {self.p_range}")
        if self.p_range is not None and self.proportions is not None:
            raise ValueError("p_range and proportions exclude one another; got both")

    def check(self, around: Surroundings) -> None:
        check_count("exit proportions", self.proportions, around.exits)
        if self.gradient == "forward":
            return
        alternative = "use gradient forward, or leave it out"
        if around.flow != "plain" and self.gradient == "finite-difference":
            raise ValueError(f"finite differences do not see how gradients flow (flow {around.flow}); {alternative}")
        if around.precision != "float32" and self.gradient == "finite-difference":
            raise ValueError(f"precision {around.precision} drowns a finite difference in rounding; {alternative}")
        if around.compile and self.gradient == "double-backward":
            raise ValueError(f"compile cannot be differentiated twice (gradient double-backward); {alternative}")
        if around.channels_last and self.gradient == "double-backward":
            raise ValueError(f"channels_last cannot be differentiated twice (double-backward); {alternative}")
        if around.processes > 1 and self.gradient == "double-backward":
            raise UserError(f"gradient double-backward is for one process; {alternative}")


@dataclass(frozen=True)
class ByExitOptions(Options):
    """Options of ``by-exit``."""

    weighs_alone: ClassVar[bool] = True

    exit_rule: Literal["increasing", "decreasing", "macs"] = option(
        "increasing", "In proportion to an exit's number, to that from the end, or to its MACs."
    )


@dataclass(frozen=True)
class ExitSimulatedOptions(Options):
    """Options of ``exit-simulated``."""

    sharpness: float = option(10.0, "How fast weights fall off from a sample's exit at the end of the training.", ge=0)
    threshold_draws: int = option(5, "Thresholds that are drawn for each half batch.", ge=1, le=1000)


@dataclass(frozen=True)
class CapabilityGatedOptions(Options):
    """Options of ``capability-gated``."""

    weighs_alone: ClassVar[bool] = True
    one_class: ClassVar[bool] = True

    gate: Literal["hard", "soft"] = option(
        "hard", "hard: an exit that is right and sure keeps a sample from later ones; soft: as far as it is sure."
    )
    gate_confidence: float = option(0.5, "With gate hard: how sure.", gt=0, le=1)
    gate_floor: float = option(1e-3, "What every sample counts at every exit, before weights are averaged to 1.", gt=0)


METHODS = by_name(
    Part(
        "uniform",
        "every sample counts the same, or by one weight per exit: the usual baseline (default)",
        f"{_HOME}.uniform:Uniform",
        UniformOptions,
    ),
    Part(
        "by-exit",
        "one weight per exit by a rule: more for later, earlier or dearer exits",
        f"{_HOME}.by_exit:ByExit",
        ByExitOptions,
    ),
    Part(
        "exit-simulated",
        "most weight where a sample would leave, under thresholds that are drawn (COSEE)",
        f"{_HOME}.exit_simulated:ExitSimulated",
        ExitSimulatedOptions,
    ),
    Part(
        "capability-gated",
        "weight for exits that a sample still needs, deeper ones counting more over time (CGT)",
        f"{_HOME}.capability_gated:CapabilityGated",
        CapabilityGatedOptions,
    ),
    Part(
        "meta-weighted",
        "weights from a learned network, by the exact meta-gradient",
        f"{_HOME}.meta_weighted:MetaWeighted",
        MetaWeightedOptions,
    ),
    Part(
        "meta-weighted-shared",
        "the same in a cheaper variant that reuses the real update as the look-ahead",
        f"{_HOME}.shared_step:SharedStep",
        MetaWeightedOptions,
    ),
)
DEFAULT = "uniform"


def weigh_alone() -> list[str]:
    """Return the names of the methods here that weigh each sample by itself."""
    return [part.name for part in METHODS.values() if part.options.weighs_alone]


def method_names() -> list[str]:
    """Return the names of all methods, those that other packages register last."""
    return [*METHODS, *(name for name in _registered() if name not in METHODS)]


def is_method(name: str) -> bool:
    """Return whether a name can be a method's; the code of one from elsewhere is not looked for."""
    return name in METHODS or _is_path(name) or name in _registered()


def find_method(name: str) -> Part:
    """Return the method of a name, or the one at ``package.module:name``.

    Raises:
        UserError: for an unknown name, or if there is no method at that path.
    """
    if name in METHODS:
        return METHODS[name]
    path = name if _is_path(name) else _registered().get(name)
    if path is None:
        raise UserError(f"unknown method {name!r}; {near_match(name, method_names())}")
    try:
        found = Entry(name, "", path).load()
    except Exception as error:  # somebody else's module may raise anything
        raise UserError(f"expected a training method at {path}; {error or type(error).__name__}") from error
    if isinstance(found, Part):
        return replace(found, name=name)
    options = getattr(found, "options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise UserError(f"expected a training method at {path}; got {found!r:.80}")
    summary = (found.__doc__ or "").strip().split("\n")[0]
    return Part(name, summary, path, options)


def _is_path(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _registered() -> dict[str, str]:
    """Return the paths of methods that other packages register, by name."""
    from importlib.metadata import entry_points  # takes longer than the rest of this file

    return {point.name: point.value for point in entry_points(group=GROUP)}
