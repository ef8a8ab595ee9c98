"""What a calibration says is exactly what its rule spends and scores, sample by sample, whatever was asked for."""

import re

import numpy as np
import pytest

from exitwise.catalogue.measures import MEASURES
from exitwise.deploy.asked import Asked
from exitwise.deploy.calibrating import Costs, Recorded, calibrated
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.paired import Paired

CLASSES = ["a", "b", "c", "d"]
COSTS = Costs((10, 35, 60, 100), 100)
WISHES = [
    {"budget": 0.5},
    {"macs": 42},
    {"p": 0.8},
    {"proportions": [0.1, 0.2, 0.3, 0.4]},
    {"max_accuracy_drop": 0.03},
]
LEARNED = ("running-ensemble", "fitted-ensemble", "accuracy", "deferral")
CASES = [
    *((name, seed) for name in MEASURES if name not in LEARNED for seed in range(3)),
    *(pytest.param(name, 1, marks=pytest.mark.slow) for name in LEARNED),
]


def recorded(seed):
    """Outputs of four exits; some seeds have saturated or equal confidences, and a last exit that is not the best."""
    generator = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(4), generator.integers(0, 4, 116)])
    logits = generator.normal(size=(120, 4, 4)).astype(np.float32)
    logits[np.arange(120), :, targets] += generator.permutation([0.5, 1.0, 2.0, 3.0]).astype(np.float32)
    if seed % 3 == 1:
        logits = np.round(logits)
    if seed % 3 == 2:
        logits *= 40
    return Recorded(logits, targets, CLASSES, seed)


def one_by_one(confidences, predictions, thresholds):
    """Exit and answer of each sample, by the rule in its plainest form."""
    exits, answers = [], []
    for sure, said in zip(confidences, predictions, strict=True):
        exit = 0
        while exit < 3 and (thresholds[exit] is None or not sure[exit] >= np.asarray(thresholds[exit], sure.dtype)):
            exit += 1
        exits.append(exit)
        answers.append(said[exit])
    return np.array(exits), np.array(answers)


@pytest.mark.parametrize(("measure", "seed"), CASES)
@pytest.mark.filterwarnings("ignore::exitwise.deploy.calibrating.CalibrationWarning")
def test_what_is_said_is_what_happens(measure, seed):
    held = recorded(seed)
    for wish in WISHES:
        for temperature in (False, True) if seed == 0 else (False,):
            asked = Asked(wish, measure=measure, temperature=temperature, thresholds=None, drop_from="full")
            found = calibrated(asked, held, COSTS)
            fitted = fit_and_read(
                measure, held.logits, held.targets, COSTS.exit_macs, temperature=temperature, seed=held.seed
            )
            exits, answers = one_by_one(fitted.confidences, fitted.predictions, found.policy.thresholds)
            right = answers == held.targets
            full = held.logits[:, -1].argmax(-1) == held.targets
            spent = np.array(COSTS.exit_macs)[exits].mean()
            assert found.expected["accuracy"] == right.mean()
            assert found.expected["macs"] == pytest.approx(spent, rel=1e-12)
            assert found.expected["shares"] == tuple((np.bincount(exits, minlength=4) / 120).tolist())
            paired = found.outcome.paired
            assert paired == Paired((right & ~full).sum(), (full & ~right).sum(), 120)
            said = re.sub(r"\s+", " ", str(found))
            assert re.search(rf": {100 * spent / 100:.0f} % of MACs; {re.escape(str(paired))} against the full", said)
            if "budget" in wish or "macs" in wish:
                assert spent <= COSTS.target(wish) * (1 + 1e-9)
            if "max_accuracy_drop" in wish:
                assert full.mean() - right.mean() <= 0.03 + 1e-9
