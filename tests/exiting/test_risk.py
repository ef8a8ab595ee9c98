import math

import numpy as np
import pytest
import torch

from exitwise.exiting.calibration import MARGIN, calibrate_accuracy
from exitwise.exiting.risk import betting_rejects, control_answers, control_risk, design_and_test, least_samples

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


@pytest.mark.slow
def test_a_guarantee_for_each_part_fails_no_more_often_than_it_says(population):
    """Of five parts, of which one is much harder than the others: that all of them are within the tolerance."""
    generator = torch.Generator().manual_seed(1)
    confidences, predictions, targets = population
    parts = np.arange(POPULATION) % 5
    wrong = (parts == 4) & (np.arange(POPULATION) // 5 % 3 > 0)  # sure of wrong answers at its first exit
    predictions = predictions.copy()
    predictions[wrong, 0] = (targets[wrong] + 2) % 10

    def worst(policy):
        of_parts = (tuple(each[parts == k] for each in (confidences, predictions, targets)) for k in range(5))
        return max(true_loss(policy, part, "accuracy-drop") for part in of_parts)

    violations, held, draws, samples = 0, 0, 200, 3000
    for draw in range(draws):
        index = torch.randint(POPULATION, (samples,), generator=generator).numpy()
        some = (each[index] for each in (confidences, predictions, targets))
        found = control_risk(*some, 0.05, 0.9, seed=draw, parts=parts[index])
        held += found.holds
        violations += worst(found.policy) > 0.05
    assert worst(control_risk(confidences, predictions, targets, 0.05, 0.9).policy) > 0.05, "the average hides it"
    print(f"each of five: {violations} of {draws} draws above 0.05; early exits allowed in {held}")
    assert held > 0.5 * draws
    assert violations / draws <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / draws)


def answers_of(population):
    """Confidences and whether answers are right, of the second exit alone."""
    confidences, predictions, targets = population
    return confidences[:, 1], predictions[:, 1] == targets


def true_accuracy(found, sure, right):
    answered = sure >= np.float32(found.abstain_below)
    return (right[answered].mean() if answered.any() else 1.0), answered.mean()


@pytest.mark.slow
def test_the_accuracy_of_answers_falls_short_no_more_often_than_it_says(population):
    generator = torch.Generator().manual_seed(1)
    sure, right = answers_of(population)
    short, shares = 0, []
    for draw in range(DRAWS):
        index = torch.randint(POPULATION, (SAMPLES,), generator=generator).numpy()
        found = control_answers(sure[index], right[index], 0.85, 0.9, seed=draw)
        accuracy, share = true_accuracy(found, sure, right)
        short += accuracy < 0.85
        shares.append(share)
    print(f"answers: {short} of {DRAWS} draws below 0.85; {np.mean(shares):.2f} answered, all are {right.mean():.3f}")
    assert np.mean(shares) > 0.2
    assert short / DRAWS <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / DRAWS)


def test_as_much_is_answered_as_is_right_often_enough(population):
    """With many samples the confidence is the one that the population itself would give, a little on the safe side."""
    sure, right = answers_of(population)
    found = control_answers(sure, right, 0.85, 0.95)
    order = np.argsort(-sure)
    accuracy = right[order].cumsum() / np.arange(1, POPULATION + 1)
    most = np.flatnonzero(accuracy >= 0.85).max() / POPULATION
    reached, share = true_accuracy(found, sure, right)
    assert found.holds
    assert reached >= 0.85
    assert most - 0.1 < share <= most
    answered = sure[design_and_test(POPULATION)[1]] >= np.float32(found.abstain_below)
    assert (found.tested, found.answered) == (len(answered), answered.sum())
    easy = control_answers(sure, right, 0.5, 0.95)
    assert (easy.abstain_below, easy.holds) == (0.0, True), "what is right often enough is answered altogether"


def test_answers_that_cannot_be_guaranteed_are_not_given(population):
    sure, right = (each[:60] for each in answers_of(population))
    assert control_answers(sure, right, 0.99, 0.99) == (1.0, False, 42, 0, 0)
    nothing = np.full(600, np.nan, np.float32), np.ones(600, bool)
    assert not control_answers(*nothing, 0.5, 0.9).holds, "no confidence at all"
    least = least_samples(1 - 0.9, 0.9, "disagreement")
    for samples, holds in ((least, True), (least - 2, False)):
        assert control_answers(np.ones(samples), np.ones(samples, bool), 0.9, 0.9).holds == holds
    with pytest.raises(ValueError, match="accuracy must lie between 0 and 1; got 1"):
        control_answers(sure, right, 1.0)


def test_all_at_one_exit_may_be_guaranteed_where_deeper_ones_are_worse():
    """The last exit is bad, and the confidences say nothing: the sequence from there fails at once."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, 2000)
    right = generator.random((2000, 3)) < np.array([0.5, 0.95, 0.6])
    predictions = np.where(right, targets[:, None], (targets[:, None] + 1) % 5)
    confidences = generator.random((2000, 3)).astype(np.float32)
    found = control_risk(confidences, predictions, targets, 0.02, 0.95, full=predictions[:, 1])
    assert found.holds
    assert found.policy.exit_of(confidences).tolist() == [1] * 2000
    assert found.proportions == [0, 1, 0]
    assert found.mean_loss == 0


def test_the_part_that_loses_most_decides():
    """A tenth of the samples pays: the average is within the tolerance, that part is not, and nobody leaves then."""
    parts = (np.arange(4000) % 10 == 0).astype(np.int64)
    predictions = np.zeros((4000, 2), np.int64)
    predictions[(parts == 1) & (np.arange(4000) % 20 == 0), 0] = 1
    confidences = np.ones((4000, 2), np.float32)
    asked = (confidences, predictions, np.zeros(4000, np.int64), 0.1, 0.9)
    average, each = control_risk(*asked), control_risk(*asked, parts=parts)
    assert average.policy.can_leave(0)
    assert average.mean_loss < 0.1
    assert not each.policy.can_leave(0)
    same = control_risk(*asked, parts=np.zeros(4000, np.int64))
    assert same == average, "one part is all of them"
    assert not control_risk(*asked, parts=np.append(np.zeros(3999, np.int64), 1)).holds, "one sample proves nothing"


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
