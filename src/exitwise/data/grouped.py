"""Held-out images by groups: all images of a patient, say, are in one part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exitwise.data.sampling import derive_seed
from exitwise.data.sources.base import Source
from exitwise.errors import DataError


def hold_out_groups(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Return the positions of the images of each part and, of what remains, of ``train``, sorted int64.

    Groups, the largest first and equal ones in a random order, go one by one where they bring every class nearest to
    its share of every part, in squares.

    Raises:
        DataError: if a part gets no image of a class.
    """
    assert source.groups is not None
    names = sorted(set(source.groups))
    number = {name: k for k, name in enumerate(names)}
    members = torch.tensor([number[group] for group in source.groups])
    counts = torch.zeros(len(names), len(source.classes))
    counts.index_put_((members, source.targets), torch.ones(len(members)), accumulate=True)
    shares = {**fractions, "train": 1 - sum(fractions.values())}
    wanted = torch.tensor(list(shares.values()))[:, None] * counts.sum(0)
    size = counts.sum(0).clamp(min=1)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(derive_seed(seed)))
    order = order[counts[order].sum(1).argsort(descending=True, stable=True)]
    given = torch.zeros_like(wanted)
    part_of = torch.empty(len(names), dtype=torch.int64)
    for group in order.tolist():
        before = (((given - wanted) / size) ** 2).sum(1)
        after = (((given + counts[group] - wanted) / size) ** 2).sum(1)
        part = int((after - before).argmin())
        part_of[group] = part
        given[part] += counts[group]
    for share, held in zip(shares, given, strict=True):
        if (lacking := (held == 0).nonzero()).numel():
            name = source.classes[int(lacking[0])]
            groups = int((counts[:, int(lacking[0])] > 0).sum())
            raise DataError(
                f"expected groups enough to divide class {name!r}, whole ones for each of {', '.join(shares)}; it is "
                f"in {groups} of {len(names)}, and none is left for {share}"
            )
    return {share: (part_of[members] == k).nonzero().squeeze(1) for k, share in enumerate(shares)}
