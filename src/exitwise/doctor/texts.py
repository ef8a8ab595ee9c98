"""Looks over a table of texts, as the network will see them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from exitwise.data.sources.tables import Row
from exitwise.data.sources.texts import read_texts
from exitwise.data.tokens import Tokens
from exitwise.doctor import Finding
from exitwise.doctor.samples import Sample, imbalance, pairs_shown, small_classes, twins
from exitwise.errors import UserError
from exitwise.runs.build import preprocessing_of
from exitwise.settings.schema import Settings

MANY = 0.5
"""Share of the texts that may be cut without a warning."""


def examine_texts(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of the texts beyond whether training would stop; nothing of what cannot be read."""
    try:
        tokens = preprocessing_of(settings)
        parts = read_texts(Path(settings.data))
    except UserError:  # which is a finding of its own
        return
    assert isinstance(tokens, Tokens)
    rows = [(part if len(parts) > 1 else "", row) for part, mine in parts.items() for row in mine]
    ids, cut = tokens.ids([row.content for _, row in rows])
    samples = [
        Sample(part, row.label, Path(f"line {row.line}"), str(own.tolist()))
        for (part, row), own in zip(rows, ids, strict=True)
    ]
    yield _lengths([len(own) for own in ids], sum(cut), settings.tokens)
    yield from small_classes(samples, "texts")
    yield from imbalance(samples, "texts")
    yield from twins(samples, "texts")
    yield from _alike(samples, [row for _, row in rows])


def _lengths(lengths: Sequence[int], cut: int, tokens: int | None) -> Finding:
    text = f"{min(lengths)} to {max(lengths)} tokens a text; {cut} of {len(lengths)} are longer than tokens {tokens}"
    if cut > MANY * len(lengths):
        return Finding("warning", f"{text}, and cut", "raise tokens, if what matters is not said at their beginning")
    return Finding("fine", f"{text}{', and cut' if cut else ''}")


def _alike(samples: Sequence[Sample], rows: Sequence[Row]) -> Iterator[Finding]:
    """Texts that differ in capitals, marks and spaces alone, and that groups do not hold together."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[" ".join(re.findall(r"\w+", row.content.casefold()))].append(number)
    found = []
    for words, members in groups.items():
        contents = {samples[k].sha256 for k in members}
        together = len({rows[k].group for k in members}) == 1 and rows[members[0]].group is not None
        apart = len({samples[k].part for k in members}) > 1 or not samples[members[0]].part
        if words and len(contents) > 1 and apart and not together:
            first = samples[members[0]]
            found.append([first, next(samples[k] for k in members if samples[k].sha256 != first.sha256)])
    if found:
        text = f"{len(found)} texts say the same as another one that may judge them: {pairs_shown(found)}"
        yield Finding("warning", text, "results are too good: leave one of them, or give them a group")
