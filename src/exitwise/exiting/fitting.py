"""Measures fitted on held-out samples, and readings of the same samples by measures that were fitted on others.

Thresholds that are chosen on the latter have not seen a measure praise what it was fitted on. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from exitwise.errors import UserError
from exitwise.exiting.arrays import Array, as_numpy
from exitwise.exiting.measures import Measure, create_measure
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.shapes import Float, Int

FOLDS = 5
"""Parts of the samples, each of which is read by a measure that was fitted on the others."""


class Fitted(NamedTuple):
    """A measure, and what it says of the samples.

    Attributes:
        measure: fitted on all of them, or on those asked for.
        confidences, predictions: of all samples at all exits, each by a measure that was not fitted on it.
    """

    measure: Measure
    confidences: Float[np.ndarray, "samples exits"]
    predictions: Int[np.ndarray, "samples exits"]


def fit_measure(
    name: str,
    logits: Float[Array, "samples exits classes"],
    targets: Int[Array, "samples"],
    exit_costs: Sequence[float],
    *,
    temperature: bool = False,
) -> Measure:
    """Return a measure fitted on held-out samples.

    Args:
        name: of the catalogue.
        logits: of these samples.
        targets: class indices.
        exit_costs: cost of leaving at each exit.
        temperature: whether to fit a temperature per exit first, where the measure does not do it itself.
    """
    logits, targets = as_numpy(logits), as_numpy(targets)
    plain = create_measure(name)
    if temperature and not plain.fits_temperatures:
        plain = create_measure(name, fit_temperatures(logits, targets))
    return plain.fit(logits, targets, exit_costs)


def fit_and_read(
    name: str,
    logits: Float[Array, "samples exits classes"],
    targets: Int[Array, "samples"],
    exit_costs: Sequence[float],
    *,
    temperature: bool = False,
    on: Int[Array, "chosen"] | None = None,
    seed: int = 0,
) -> Fitted:
    """Return a measure fitted on samples, and their readings: of each by a measure fitted without its part of them.

    A measure without parameters reads all of them itself, also after temperatures were fitted.

    Args:
        name, logits, targets, exit_costs, temperature: as for :func:`fit_measure`.
        on: which samples may be fitted on, indices; the others are read by the measure that is returned. None: all.
        seed: of the division into parts.

    Raises:
        UserError: for a single sample and a measure with parameters.
    """
    logits, targets = as_numpy(logits), as_numpy(targets)
    on = np.arange(len(targets)) if on is None else as_numpy(on)
    how: dict[str, Any] = {"exit_costs": exit_costs, "temperature": temperature}
    measure = fit_measure(name, logits[on], targets[on], **how)
    confidences, predictions = measure.read_all(logits)
    if measure.is_fitted:
        for part in folds(len(on), seed):
            others, these = np.delete(on, part), on[part]
            confidences[these], predictions[these] = fit_measure(name, logits[others], targets[others], **how).read_all(
                logits[these]
            )
    return Fitted(measure, confidences, predictions)


def folds(samples: int, seed: int) -> list[Int[np.ndarray, "part"]]:
    """Return the samples' indices in parts, at random.

    Raises:
        UserError: for fewer than two samples.
    """
    if samples < 2:
        raise UserError(f"expected at least 2 held-out samples to fit a measure on; got {samples}")
    return np.array_split(np.random.default_rng(seed).permutation(samples), min(FOLDS, samples))
