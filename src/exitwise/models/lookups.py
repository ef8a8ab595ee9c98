"""Which token ids and how many tokens a network of texts takes, told by the tables that it looks them up in."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from exitwise.kernels.inputs import IDS, MASK, Inputs, batch_of, is_tokens, named
from exitwise.kernels.modes import evaluating
from exitwise.models.staged import StagedModel

SHORT, LONG, LONGEST = 4, 7, 1024
"""Tokens of the two texts that are compared; and how many are tried where no table of positions is found."""


class Lookups(NamedTuple):
    """What a network of texts takes.

    Attributes:
        ids: how many token ids it knows; None where it looks none up.
        positions: tokens of its longest text; None where no end was found.
    """

    ids: int | None
    positions: int | None


def lookups(model: StagedModel) -> Lookups:
    """Return what a network takes by its tables: nothing is known of one without token ids."""
    if not any(map(is_tokens, named(model.example).values())):
        return Lookups(None, None)
    with torch.no_grad(), evaluating(model):
        short, ids = _largest(model, SHORT)
        long, _ = _largest(model, LONG)
        ends = [
            table.num_embeddings - (short[table] - SHORT + 1)
            for table in short
            if long.get(table, 0) - short[table] == LONG - SHORT
        ]
        return Lookups(min(ids, default=None), min(ends, default=None) or _tried(model))


def unknown_tokens(inputs: Inputs, known: Lookups) -> tuple[str, str] | None:
    """Return what was expected and what came, in words, unless a network knows all tokens of its inputs; None if so."""
    parts = [part for part in named(inputs).values() if is_tokens(part)]
    if not parts:
        return None
    ids = named(inputs).get(IDS, parts[0])
    if known.ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known.ids:
        return f"token ids from 0 to {known.ids - 1}", f"{int(ids.min())} to {int(ids.max())}"
    if known.positions is not None and ids.shape[1] > known.positions:
        return f"at most {known.positions} tokens, as many as the network has positions,", str(ids.shape[1])
    return None


def _largest(model: StagedModel, tokens: int) -> tuple[dict[nn.Embedding, int], list[int]]:
    """Return the largest index that each table is asked for by a text of so many equal tokens, and the sizes of those
    that are asked for the ids themselves."""
    inputs = _text(model, tokens)
    ids = named(inputs).get(IDS, next(part for part in named(inputs).values() if is_tokens(part)))
    largest: dict[nn.Embedding, int] = {}
    sizes: list[int] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        table = cast("nn.Embedding", module)
        if isinstance(args[0], Tensor) and args[0].numel():
            largest[table] = int(args[0].max())
            if torch.equal(args[0], ids):
                sizes.append(table.num_embeddings)

    hooks = [part.register_forward_pre_hook(look) for part in model.modules() if isinstance(part, nn.Embedding)]
    try:
        model.forward_only(inputs, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return largest, sizes


def _text(model: StagedModel, tokens: int) -> Inputs:
    """Return the example's first row with one of its tokens, which its mask does not hide, again and again."""
    inputs = batch_of(model.example, 1, next(model.parameters()))
    mask = named(inputs).get(MASK)
    column = 0 if mask is None else int(mask[0].argmax())

    def repeat(part: Tensor) -> Tensor:
        return part[:, column : column + 1].repeat(1, tokens) if is_tokens(part) else part

    return repeat(inputs) if isinstance(inputs, Tensor) else {name: repeat(part) for name, part in inputs.items()}


def _tried(model: StagedModel) -> int | None:
    """Return the tokens of the longest text that runs, if one of :data:`LONGEST` does not."""
    if next(model.parameters()).device.type != "cpu":  # where a failure might leave the device unusable
        return None
    works, fails = LONG, LONGEST + 1
    if _runs(model, LONGEST):
        return None
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _runs(model, middle) else (works, middle)
    return works


def _runs(model: StagedModel, tokens: int) -> bool:
    try:
        model.forward_only(_text(model, tokens), 0)
    except Exception:  # of whatever kind a stranger's network raises
        return False
    return True
