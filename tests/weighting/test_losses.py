import pytest
import torch
import torch.nn.functional as F

from exitwise.methods.losses.distil import DistilLast, DistilNext, DistilRun
from exitwise.methods.losses.margin import Margin
from exitwise.weighting.losses import Loss, margin_penalty


def soft(logits, teacher, temperature):
    answers, taught = (logits / temperature).log_softmax(1), (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.kl_div(answers, taught, reduction="none").sum(1)


@pytest.mark.parametrize(("kind", "teachers"), [(DistilLast, (2, 2)), (DistilNext, (1, 2))])
def test_early_exits_learn_from_a_later_one_and_the_last_from_the_labels(kind, teachers):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    losses = kind(0.3, label_smoothing=0.1).of(logits, targets)
    for k, teacher in enumerate(teachers):
        hard = F.cross_entropy(logits[:, k], targets, reduction="none", label_smoothing=0.1)
        torch.testing.assert_close(losses[:, k], 0.7 * hard + 0.3 * soft(logits[:, k], logits[:, teacher], 2.0))
    plain = Loss(label_smoothing=0.1)
    torch.testing.assert_close(losses[:, 2], plain.of(logits, targets)[:, 2])
    assert plain.extra(logits, targets) is None
    (gradient,) = torch.autograd.grad(losses[:, 0].sum(), logits)
    assert gradient[:, 1:].abs().max() == 0
    torch.testing.assert_close(kind(0.3).of(logits[:, :1], targets), Loss().of(logits[:, :1], targets))


@pytest.mark.parametrize("exits", [1, 3])
def test_all_exits_learn_from_a_teacher(exits):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, exits, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    losses = DistilRun(0.3, 5.0, label_smoothing=0.1).of(logits, targets, teacher)
    for k in range(exits):
        hard = F.cross_entropy(logits[:, k], targets, reduction="none", label_smoothing=0.1)
        torch.testing.assert_close(losses[:, k], 0.7 * hard + 0.3 * soft(logits[:, k], teacher, 5.0))
    gradients = torch.autograd.grad(losses.sum(), [logits, teacher], allow_unused=True)
    assert gradients[0][:, -1].abs().min() > 0
    assert gradients[1] is None
    same = DistilRun(1.0, 5.0).of(teacher.detach()[:, None].expand(-1, exits, -1), targets, teacher)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)


def test_a_loss_that_lacks_its_teacher_says_so():
    with pytest.raises(ValueError, match="expected a teacher's logits for the samples"):
        DistilRun().of(torch.randn(4, 2, 3), torch.arange(4) % 3)


def test_the_margin_is_between_mean_confidences_of_right_and_wrong_answers():
    torch.manual_seed(1)
    logits, targets = 2 * torch.randn(20, 4, 3, dtype=torch.float64), torch.randint(3, (20,))
    logits[:, 3] = 5 * F.one_hot(targets, 3)  # always right: nothing to tell apart
    expected = 0.0
    for k in range(3):
        p, answers = logits[:, k].softmax(1).max(1)
        right = answers == targets
        expected += max(0.0, float(p[~right].mean() - p[right].mean() + 0.3)) / 4
    assert expected > 0
    assert float(margin_penalty(logits, targets, 0.3)) == pytest.approx(expected)
    assert float(Margin(0.3, 0.5).extra(logits, targets)) == pytest.approx(0.5 * expected)
    assert margin_penalty(logits[:, 3:], targets, 0.3) == 0
