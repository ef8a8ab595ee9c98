"""Heads on tokens, against loops over the tokens that are there."""

import torch

from exitwise.models.heads import Feature, LinearHead, OnState

X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])


def by_loop(first, causal, mask):
    rows = []
    for x, there in zip(X, mask.bool(), strict=True):
        seen = x[there]
        own = seen[-1] if causal else x[0]
        rest = x[1:][there[1:]] if first else seen
        rows.append(torch.cat([own, rest.mean(0)]) if first or causal else rest.mean(0))
    return torch.stack(rows)


def test_tokens_that_are_there():
    for prefix, causal in ((1, False), (0, True), (0, False)):
        head = LinearHead(Feature("tokens", 4, (6,), prefix, masked=True, causal=causal), 5)
        torch.testing.assert_close(head.reduce(X, MASK), by_loop(prefix, causal, MASK))
        torch.testing.assert_close(head.reduce(X), by_loop(prefix, causal, torch.ones_like(MASK)))


def test_a_text_of_one_token_has_no_mean_and_no_trouble():
    head = LinearHead(Feature("tokens", 4, (6,), 1, masked=True), 5)
    reduced = head.reduce(X, torch.tensor([[1, 0, 0, 0, 0, 0]] * 3))
    assert torch.equal(reduced, torch.cat([X[:, 0], torch.zeros(3, 4)], dim=1))


def test_a_mask_is_given_to_heads_that_take_one():
    class Own(torch.nn.Module):
        def forward(self, x, mask):
            return (x * mask[..., None]).sum(1)

    torch.testing.assert_close(OnState(Own(), 2)((X, None, MASK)), (X * MASK[..., None]).sum(1))
    assert OnState(torch.nn.Identity(), 1)((X, MASK)) is X
    assert OnState(Own(), 1).reduce((X, MASK)) == (X, MASK)
