"""Measures that are fitted read nothing that they were fitted on when thresholds are chosen."""

from dataclasses import dataclass

import numpy as np
import pytest

from exitwise.catalogue import measures as catalogue
from exitwise.catalogue.entry import Entry
from exitwise.errors import UserError
from exitwise.exiting.fitting import FOLDS, fit_and_read, fit_measure
from exitwise.exiting.measures import Measure, Reading


@dataclass(frozen=True)
class Knows(Measure):
    """Sure of what it was fitted on alone, by the samples' numbers, which are their first logits."""

    name = "knows"
    seen: tuple[int, ...] = ()

    def read(self, logits, exit, state=None):
        known = np.isin(logits[:, 0].astype(int), self.seen)
        return Reading(known.astype(logits.dtype), logits[:, 0].astype(np.int64))

    def fit(self, logits, targets, exit_costs):
        return type(self)(self.temperatures, tuple(logits[:, 0, 0].astype(int).tolist()))


@pytest.fixture
def numbered(monkeypatch):
    monkeypatch.setitem(catalogue.MEASURES, "knows", Entry("knows", "", f"{__name__}:Knows"))
    logits = np.zeros((47, 2, 3), np.float32)
    logits[:, :, 0] = np.arange(47)[:, None]
    return logits, np.zeros(47, np.int64)


def test_each_sample_is_read_by_a_measure_fitted_on_the_others(numbered):
    found = fit_and_read("knows", *numbered, (1.0, 2.0))
    assert sorted(found.measure.seen) == list(range(47))
    assert found.confidences.max() == 0
    np.testing.assert_array_equal(found.predictions[:, 1], np.arange(47))


def test_what_may_not_be_fitted_on_is_read_by_the_measure_itself(numbered):
    on = np.array([40, 3, 9, 21])
    found = fit_and_read("knows", *numbered, (1.0, 2.0), on=on)
    assert sorted(found.measure.seen) == sorted(on.tolist())
    assert found.confidences.max() == 0


def test_two_samples_are_the_least(numbered):
    logits, targets = numbered
    assert fit_and_read("knows", logits[:2], targets[:2], (1.0, 2.0)).confidences.max() == 0
    with pytest.raises(UserError, match="expected at least 2 held-out samples to fit a measure on; got 1"):
        fit_and_read("knows", logits[:1], targets[:1], (1.0, 2.0))
    assert FOLDS > 2


def test_temperatures_are_fitted_where_a_measure_fits_none_itself():
    logits, targets = np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32), np.arange(50) % 3
    assert fit_measure("margin", logits, targets, (1.0, 2.0)).temperatures is None
    assert len(fit_measure("margin", logits, targets, (1.0, 2.0), temperature=True).temperatures) == 2
    with_and_without = [
        fit_measure("fitted-ensemble", logits, targets, (1.0, 2.0), temperature=t) for t in (True, False)
    ]
    assert with_and_without[0] == with_and_without[1]
