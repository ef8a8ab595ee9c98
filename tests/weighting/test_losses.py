import pytest
import torch
import torch.nn.functional as F

from exitwise.weighting.losses import exit_losses


def soft(logits, teacher, temperature):
    answers, taught = (logits / temperature).log_softmax(1), (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.kl_div(answers, taught, reduction="none").sum(1)


def test_early_exits_learn_from_the_last_one_which_learns_nothing_of_it():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    losses = exit_losses(logits, targets, 0.1, distil=0.3)
    teacher = (logits[:, 2].detach() / 2).softmax(1)
    for k in (0, 1):
        hard = F.cross_entropy(logits[:, k], targets, reduction="none", label_smoothing=0.1)
        soft = F.kl_div((logits[:, k] / 2).log_softmax(1), teacher, reduction="none").sum(1)
        torch.testing.assert_close(losses[:, k], 0.7 * hard + 0.3 * 4 * soft)
    torch.testing.assert_close(losses[:, 2], exit_losses(logits, targets, 0.1)[:, 2])
    (gradient,) = torch.autograd.grad(losses[:, :2].sum(), logits)
    assert gradient[:, 2].abs().max() == 0
    torch.testing.assert_close(exit_losses(logits[:, :1], targets, distil=0.3), exit_losses(logits[:, :1], targets))


@pytest.mark.parametrize("exits", [1, 3])
def test_all_exits_learn_from_a_teacher(exits):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, exits, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    losses = exit_losses(logits, targets, 0.1, 0.3, teacher, 5.0)
    for k in range(exits):
        hard = F.cross_entropy(logits[:, k], targets, reduction="none", label_smoothing=0.1)
        torch.testing.assert_close(losses[:, k], 0.7 * hard + 0.3 * soft(logits[:, k], teacher, 5.0))
    gradients = torch.autograd.grad(losses.sum(), [logits, teacher], allow_unused=True)
    assert gradients[0][:, -1].abs().min() > 0
    assert gradients[1] is None
    same = exit_losses(teacher.detach()[:, None].expand(-1, exits, -1), targets, 0.0, 1.0, teacher, 5.0)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)
