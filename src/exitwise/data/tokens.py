"""Texts as token ids, and rows of these filled up to batches. Needs the tokenizers library when texts are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitwise.catalogue.extras import needing_extras
from exitwise.kernels.inputs import IDS, MASK


@dataclass(frozen=True)
class Tokens:
    """The way of a text to the network.

    Attributes:
        content: of a ``tokenizer.json`` that cuts texts, and says how rows are filled up.
    """

    content: bytes

    def ids(self, texts: Sequence[str]) -> tuple[list[Tensor], list[bool]]:
        """Return the token ids of each text, int64 (tokens), cut where the tokenizer says; and whether it was cut."""
        with needing_extras("reading texts"):
            from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_str(self.content.decode())
        tokenizer.no_padding()
        read = tokenizer.encode_batch(list(texts))
        ids = [torch.tensor(each.ids, dtype=torch.int64) for each in read]
        return ids, [bool(each.overflowing) for each in read]

    def batch(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return rows of ids as inputs of a network, int64 (B, tokens), filled up to the longest."""
        longest = max(map(len, rows))
        padding = json.loads(self.content)["padding"]
        left = padding["direction"].lower() == "left"
        ids = torch.full((len(rows), longest), padding["pad_id"])
        mask = torch.zeros_like(ids)
        for row, own in enumerate(rows):
            place = slice(longest - len(own), None) if left else slice(len(own))
            ids[row, place] = own
            mask[row, place] = 1
        return {IDS: ids, MASK: mask}
