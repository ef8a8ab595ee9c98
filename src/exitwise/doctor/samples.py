"""Samples of a data set as they were found, and what their classes and their content say. Reads nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.data.ledger import Skipped
from exitwise.data.sources.shards import Member
from exitwise.doctor import Finding
from exitwise.shown import Noun

FEW = 10
"""Fewer readable samples of a class than this are worth a warning: few are left to calibrate and to test."""

IMBALANCED = 10
"""A class with so many times the samples of another is worth a warning."""

SHOWN = 5
NOTHING = np.empty(0, dtype=np.uint8)


class Sample(NamedTuple):
    """An image after decoding, or a text.

    Attributes:
        part: ``train``, ``val`` or ``test``; empty if there are no parts.
        name: its class.
        path: the file; of a text the line that it stands in.
        sha256: of its content as the network sees it, or as the file holds it; empty if broken.
        size: (width, height); zeros if broken.
        conversions: see :func:`~exitwise.storage.images.read_header`.
        thumbnail: see :func:`~exitwise.doctor.alike.thumbnail`; empty if broken.
        fault: what is wrong with it, if it is broken.
        inside: where it lies in a shard, if it does; ``path`` is its name then.
    """

    part: str
    name: str
    path: Path
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    conversions: tuple[str, ...] = ()
    thumbnail: NDArray[np.uint8] = NOTHING
    fault: Skipped | None = None
    inside: Member | None = None


def small_classes(samples: Sequence[Sample], noun: Noun) -> Iterator[Finding]:
    """Classes of few samples, or of none that can be read."""
    readable = Counter({(each.part, each.name): 0 for each in samples})
    readable.update((each.part, each.name) for each in samples if each.fault is None)
    for (part, name), count in sorted(readable.items()):
        where = f" of {part}" if part else ""
        if count == 0 and part in ("", "train"):
            text = f"class {name!r}{where} has no readable {noun.removesuffix('s')}"
            yield Finding("problem", text, "mend some, or remove the class")
        elif count < FEW:
            yield Finding("warning", f"class {name!r}{where} has {count} readable {noun}", "add some")


def imbalance(whole: Sequence[Sample], noun: Noun) -> Iterator[Finding]:
    """Classes that a network can be right without."""
    counts = Counter(each.name for each in whole if each.part in ("", "train"))
    if not counts:
        return
    (often, most), (rarely, least) = counts.most_common()[0], counts.most_common()[-1]
    if most >= IMBALANCED * least:
        text = f"class {rarely!r} has {least} {noun} to {most} of {often!r}: a network can be right without it"
        yield Finding("warning", text, "add some, or train with --loss logit-adjusted")


def twins(whole: Sequence[Sample], noun: Noun) -> Iterator[Finding]:
    """Samples of equal content: in several parts, of several classes, or more than once in one part. Of equal texts
    training takes the first alone."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for each in whole:
        groups[each.sha256].append(each)
    found = [group for group in groups.values() if len(group) > 1]
    across = [group for group in found if len({each.part for each in group}) > 1]
    contradicting = [group for group in found if len({each.name for each in group}) > 1]
    inside = [group for group in found if group not in across and not group[0].part]
    first = "training takes the first of them alone" if noun == "texts" else ""
    if across:
        text = f"{len(across)} {noun} are in more than one of train, val and test: {pairs_shown(across)}"
        yield Finding("warning", text, first or "results on them are too good; leave each in one part")
    if inside:
        text = f"{len(inside)} {noun} are there more than once: {pairs_shown(inside)}"
        yield Finding("warning", text, first or "they may be trained and tested on; leave one of each")
    if contradicting:
        text = f"{len(contradicting)} {noun} are in more than one class: {pairs_shown(contradicting)}"
        yield Finding("warning", text, "leave each in its class")


def pairs_shown(groups: Iterable[Sequence[Sample]]) -> str:
    """Return the first two of each group, of a few groups."""
    pairs = [" = ".join(str(each.path) for each in group[:2]) for group in groups]
    return "; ".join(pairs[:SHOWN]) + (f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")
