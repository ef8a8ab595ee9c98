"""What the budget of a meta step is."""

import torch

from exitwise import create_method, exit_proportions


def test_a_fixed_budget_stays():
    method = create_method("meta-weighted", proportions=[0.6, 0.4])
    assert method.budget() == method.budget() == [0.6, 0.4]


def test_a_drawn_budget_is_uniform_in_p():
    torch.manual_seed(0)
    method = create_method("meta-weighted", proportions=[0.5, 0.3, 0.2], p_range=(0.4, 1.2))
    shares = [method.budget() for _ in range(2000)]
    p = torch.tensor([second / first for first, second, _ in shares])
    assert 0.4 <= p.min() < 0.41
    assert 1.19 < p.max() <= 1.2
    assert abs(p.mean() - 0.8) < 0.02
    torch.testing.assert_close(torch.tensor(shares[0]), torch.tensor(exit_proportions(float(p[0]), 3)))
