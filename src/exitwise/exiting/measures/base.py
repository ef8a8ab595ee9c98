"""What a measure of confidence is: it reads the logits of one exit after the other.

For NumPy arrays and torch tensors alike; knows neither thresholds nor networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

from exitwise.exiting.arrays import Array, namespace, softmax
from exitwise.exiting.rule import Family
from exitwise.shapes import Float, Int, Shaped

State = dict[str, Shaped[Array, "samples ..."]] | None
"""What a measure carries from exit to exit of each sample: arrays by name; None: nothing."""


class Reading(NamedTuple):
    """The answer of an exit for some samples.

    Attributes:
        confidence: in [0, 1].
        prediction: class index, int64.
        state: for reading the next exit.
        probabilities: of all classes, where the answer is not the exit's own; None: the softmax of its logits at its
            temperature.
    """

    confidence: Float[Array, "samples"]
    prediction: Int[Array, "samples"]
    state: State = None
    probabilities: Float[Array, "samples classes"] | None = None


def rows(state: State, index: Shaped[Array, "chosen"] | slice) -> dict[str, Shaped[Array, "rows ..."]] | None:
    """Return the state of some of the samples."""
    return None if state is None else {name: array[index] for name, array in state.items()}


@dataclass(frozen=True)
class Measure:
    """How sure an exit is of its answer, which the exit rule compares with its thresholds.

    A measure is a frozen dataclass that defines :meth:`read`, with a line in ``catalogue/measures.py``. What it has
    fields for beside the temperatures are its parameters, plain values; :meth:`fit` gives them.

    Attributes:
        temperatures: what each exit's logits are divided by; None for 1 throughout.
        name: as in the catalogue.
        needs_every_exit: whether exits must be read at which nobody can leave, as a measure with a state must.
        fits_temperatures: whether :meth:`fit` finds temperatures where none are given.
        family: of its thresholds: ``geometric``, or ``same``, where confidences of different exits can be compared.
        by_exit: names of the parameters that have an entry for each exit, or are None.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    name: ClassVar[str]
    needs_every_exit: ClassVar[bool] = False
    fits_temperatures: ClassVar[bool] = False
    family: ClassVar[Family] = "geometric"
    by_exit: ClassVar[tuple[str, ...]] = ()

    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.temperatures is not None and not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be positive numbers; got {self.temperatures}")

    def read(self, logits: Float[Array, "samples classes"], exit: int, state: State = None) -> Reading:
        """Return what an exit (0-based) says, from its logits and the state after the exit before.

        The state that is given is left as it is. It is None at the first exit. Where it holds ``prediction`` or
        ``confidence``, these are the reading's own.
        """
        raise NotImplementedError

    def fit(
        self, logits: Float[Array, "samples exits classes"], targets: Int[Array, "samples"], exit_costs: Sequence[float]
    ) -> Self:
        """Return the measure with its parameters fitted; itself where it has none. Needs SciPy, if anything.

        Args:
            logits: of calibration samples.
            targets: class indices.
            exit_costs: cost of leaving at each exit.
        """
        return self

    @property
    def is_fitted(self) -> bool:
        """Return whether it is of those that :meth:`fit` fits, which should not read what it was fitted on."""
        return type(self).fit is not Measure.fit

    def probabilities(self, logits: Float[Array, "samples classes"], exit: int) -> Float[Array, "samples classes"]:
        """Return the softmax of an exit's logits at its temperature."""
        return softmax(logits if self.temperatures is None else logits / self.temperatures[exit])

    def read_all(
        self, logits: Float[Array, "samples exits classes"]
    ) -> tuple[Float[Array, "samples exits"], Int[Array, "samples exits"]]:
        """Return confidences and predictions of all exits."""
        readings: list[Reading] = []
        for exit in range(logits.shape[1]):
            readings.append(self.read(logits[:, exit], exit, readings[-1].state if readings else None))
        stack = namespace(logits).stack
        return stack([each.confidence for each in readings], 1), stack([each.prediction for each in readings], 1)

    def mixes(self, logits: Float[Array, "samples classes"]) -> bool:
        """Return whether answers are made of several exits', by a look at logits of the first."""
        return self.read(logits, 0).probabilities is not None

    def check(self, exits: int) -> None:
        """Raise ValueError unless this is for networks with so many exits."""
        if self.temperatures is not None and len(self.temperatures) != exits:
            raise ValueError(f"expected {exits} temperatures, one per exit; got {len(self.temperatures)}")
        for name in self.by_exit:
            value = getattr(self, name)
            if value is not None and len(value) != exits:
                raise ValueError(f"expected {name} of {exits} exits; got {len(value)}")

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what :meth:`fit` fits, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "temperatures"}

    def to_json(self) -> dict[str, Any]:
        """Return the measure as plain values, for :func:`~exitwise.exiting.measures.measure_from_json`."""
        content: dict[str, Any] = {"measure": self.name, "temperatures": self.temperatures}
        return {**content, "parameters": self.parameters} if self.parameters else content
