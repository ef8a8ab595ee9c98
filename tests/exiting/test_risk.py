import math

import pytest
import torch

from exitwise.exiting.risk import betting_rejects, control_risk

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
    return confidences, predictions, targets


def true_loss(policy, population, risk):
    confidences, predictions, targets = population
    taken = predictions.gather(1, policy.exit_of(confidences)[:, None])[:, 0]
    if risk == "disagreement":
        return (taken != predictions[:, -1]).double().mean().item()
    full = (predictions[:, -1] == targets).double()
    return (full - (taken == targets).double()).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("risk", "tolerance"), [("accuracy-drop", 0.02), ("disagreement", 0.1)])
def test_the_guarantee_fails_no_more_often_than_it_says(population, risk, tolerance):
    generator = torch.Generator().manual_seed(1)
    violations, held = 0, 0
    draws = DRAWS if risk == "accuracy-drop" else DRAWS // 5
    for draw in range(draws):
        index = torch.randint(POPULATION, (SAMPLES,), generator=generator)
        found = control_risk(*(part[index] for part in population), tolerance, 0.95, risk=risk, seed=draw)
        held += found.holds
        violations += true_loss(found.policy, population, risk) > tolerance
    print(f"{risk}: {violations} of {draws} draws above {tolerance}; early exits allowed in {held}")
    assert held > 0.5 * draws  # it is not by exiting nowhere that it is safe
    assert violations / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def test_without_the_guarantee_the_tolerance_would_be_broken(population):
    """What the same wish gives when it is met on the calibration samples alone: the test above can fail."""
    from exitwise.exiting.calibration import calibrate_accuracy

    generator = torch.Generator().manual_seed(1)
    violations = 0
    for _ in range(60):
        index = torch.randint(POPULATION, (SAMPLES,), generator=generator)
        confidences, predictions, targets = (part[index] for part in population)
        policy, _ = calibrate_accuracy(confidences, predictions == targets[:, None], (1.0, 2.0, 3.0), TOLERANCE)
        violations += true_loss(policy, population, "accuracy-drop") > TOLERANCE
    assert violations > 60 * 0.2


def test_too_few_samples_give_no_guarantee(population):
    found = control_risk(*(part[:40] for part in population), 0.01, 0.95)
    assert not found.holds
    assert found.policy.thresholds == (None, None)
    assert not control_risk(*(part[:1] for part in population), 0.01).holds


def test_the_bet_is_fair_at_the_bound():
    """At the bound itself the capital reaches 1 / delta in at most delta of the cases."""
    generator = torch.Generator().manual_seed(2)
    losses = (torch.rand(500, 2000, generator=generator) < 0.1).double()
    assert betting_rejects(losses, 0.1, 0.05).double().mean().item() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert betting_rejects(losses, 0.2, 0.05).all()
    assert betting_rejects(losses, 0.05, 0.05).double().mean().item() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1; got 0"),
        ({"tolerance": 0.1, "confidence": 1.0}, "confidence must lie between 0 and 1; got 1"),
        ({"tolerance": 0.1, "risk": "loss"}, "risk must be one of accuracy-drop, disagreement; got 'loss'"),
    ],
)
def test_bad_wishes_are_refused(population, options, message):
    with pytest.raises(ValueError, match=message):
        control_risk(*population, **options)
