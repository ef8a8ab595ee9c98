"""What becomes of a sample that is served: the exit that it leaves at, or why it is not answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.chain import Answer
from exitwise.exiting.rule import Thresholds, leaves


class RefusedError(RuntimeError):
    """A sample was not taken or not answered; the same request may succeed later."""


class FullError(RefusedError):
    """As many samples are inside as may be."""


class LateError(RefusedError):
    """Its deadline passed before the first exit."""


class StageError(RefusedError):
    """A stage failed, or did not finish in time, with the sample in its batch."""


class Left(NamedTuple):
    """The fate of a sample.

    Attributes:
        exit: 0-based.
        prediction: class index.
        confidence: at that exit.
        logits: as :class:`~exitwise.deploy.chain.Answer` has them, float32 (classes).
        thresholds: it left by.
        in_time: whether its confidence let it leave; False: its deadline passed, and this is the best exit reached.
    """

    exit: int
    prediction: int
    confidence: float
    logits: npt.NDArray[np.float32] | None
    thresholds: Thresholds
    in_time: bool = True


def goes(answer: Answer, stage: int, thresholds: Sequence[Thresholds]) -> list[bool]:
    """Return which samples leave at a stage's exit, each by thresholds of its own."""
    by = {each: leaves(answer.confidence, stage, each) for each in set(thresholds)}
    return [bool(by[each][i]) for i, each in enumerate(thresholds)]


def said(answer: Answer, i: int, stage: int, thresholds: Thresholds, in_time: bool) -> Left:
    """Return what an exit says of a sample of a batch."""
    logits = None if answer.logits is None else answer.logits[i].copy()
    return Left(stage, int(answer.prediction[i]), float(answer.confidence[i]), logits, thresholds, in_time)


@dataclass
class StageCounts:
    """What a stage has done: batches, the samples in them, seconds in it, samples that left at its exit, failures."""

    batches: float = 0
    samples: int = 0
    seconds: float = 0.0
    left: int = 0
    failures: int = 0
