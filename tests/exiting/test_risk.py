import math

import numpy as np
import pytest
import torch

from exitwise.exiting.calibration import MARGIN, calibrate_accuracy
from exitwise.exiting.risk import betting_rejects, control_risk, design_and_test

TOLERANCE, DRAWS, SAMPLES, POPULATION = 0.02, 1000, 600, 20_000


@pytest.fixture(scope="module")
def population():
    """Exits of which the early ones are sure when they should not be, so that a bold policy breaks the tolerance."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(10, (POPULATION,), generator=generator)
    ease = torch.rand(POPULATION, 1, generator=generator)
    right = torch.rand(POPULATION, 3, generator=generator) < (ease + torch.tensor([0.1, 0.25, 0.4])).clamp(max=0.97)
    predictions = torch.where(right, targets[:, None], (targets[:, None] + 1) % 10)
    confidences = (0.7 * ease + 0.3 * torch.rand(POPULATION, 3, generator=generator)).clamp(0, 1)
    return confidences.numpy(), predictions.numpy(), targets.numpy()


def true_loss(policy, population, risk):
    confidences, predictions, targets = population
    taken = np.take_along_axis(predictions, policy.exit_of(confidences)[:, None], 1)[:, 0]
    if risk == "disagreement":
        return (taken != predictions[:, -1]).mean()
    return (predictions[:, -1] == targets).mean() - (taken == targets).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("risk", "tolerance"), [("accuracy-drop", 0.02), ("disagreement", 0.1)])
def test_the_guarantee_fails_no_more_often_than_it_says(population, risk, tolerance):
    generator = torch.Generator().manual_seed(1)
    violations, held = 0, 0
    draws = DRAWS if risk == "accuracy-drop" else DRAWS // 5
    for draw in range(draws):
        index = torch.randint(POPULATION, (SAMPLES,), generator=generator).numpy()
        found = control_risk(*(part[index] for part in population), tolerance, 0.95, risk=risk, seed=draw)
        held += found.holds
        violations += true_loss(found.policy, population, risk) > tolerance
    print(f"{risk}: {violations} of {draws} draws above {tolerance}; early exits allowed in {held}")
    assert held > 0.5 * draws  # it is not by exiting nowhere that it is safe
    assert violations / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def broken(population, margin):
    """Return in how many of 30 draws a wish that is kept on the calibration samples is not kept in truth."""
    generator = torch.Generator().manual_seed(1)
    violations = 0
    for _ in range(30):
        index = torch.randint(POPULATION, (SAMPLES,), generator=generator).numpy()
        confidences, predictions, targets = (part[index] for part in population)
        correct = predictions == targets[:, None]
        policy, _ = calibrate_accuracy(confidences, correct, (1.0, 2.0, 3.0), TOLERANCE, margin=margin)
        violations += true_loss(policy, population, "accuracy-drop") > TOLERANCE
    return violations


def test_without_the_guarantee_the_tolerance_would_be_broken(population):
    """What the same wish gives when it is met on the calibration samples alone: the test above can fail. A margin of a
    standard error halves that, and is no guarantee."""
    plain = broken(population, 0.0)
    assert plain > 30 * 0.2
    assert broken(population, MARGIN) <= plain / 2


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**32 + 3])
@pytest.mark.parametrize("size", [0, 1, 2, 101, 5000])
def test_samples_are_divided_as_torch_orders_them(size, seed):
    """Which samples test a guarantee is recorded by the seed alone, and the first guarantees were given by torch."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    design, test = design_and_test(size, seed)
    assert [*design, *test] == order
    assert len(design) == round(0.3 * size)


def test_too_few_samples_give_no_guarantee(population):
    found = control_risk(*(part[:40] for part in population), 0.01, 0.95)
    assert not found.holds
    assert found.policy.thresholds == (None, None)
    assert not control_risk(*(part[:1] for part in population), 0.01).holds


def test_the_bet_is_fair_at_the_bound():
    """At the bound itself the capital reaches 1 / delta in at most delta of the cases."""
    generator = torch.Generator().manual_seed(2)
    losses = (torch.rand(500, 2000, generator=generator) < 0.1).double().numpy()
    assert betting_rejects(losses, 0.1, 0.05).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert betting_rejects(losses, 0.2, 0.05).all()
    assert betting_rejects(losses, 0.05, 0.05).mean() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1; got 0"),
        ({"tolerance": 0.1, "guarantee": 1.0}, "guarantee must lie between 0 and 1; got 1"),
        ({"tolerance": 0.1, "risk": "loss"}, "risk must be one of accuracy-drop, disagreement; got 'loss'"),
    ],
)
def test_bad_wishes_are_refused(population, options, message):
    with pytest.raises(ValueError, match=message):
        control_risk(*population, **options)
