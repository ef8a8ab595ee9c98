"""What processes that train together tell one another, and what one process alone does in its place: nothing.

Knows tensors; neither how processes start (``training/distributed.py``) nor what they train.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor


class Ranks:
    """One process alone, for which every sum is its own and everyone agrees; the base of several processes.

    A half batch is dealt to the processes; each holds its share of ``count`` samples.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        dealt: whether the batch at hand is dealt to them; otherwise each holds all of it.
        together: whether meta samples are allocated and weights centred over all shares rather than over each.
    """

    rank: int = 0
    size: int = 1
    dealt: bool = True
    together: bool = False

    @property
    def scope(self) -> Ranks:
        """Those whose samples are allocated, and weights centred, in one set."""
        return self if self.together and self.dealt else ALONE

    def repeated(self) -> Ranks:
        """Return the same processes for a batch that each of them holds as a whole."""
        return self

    def share(self, tensor: Tensor) -> Tensor | float:
        """This process's part of everyone's samples, of which it holds as many as ``tensor`` has rows.

        A mean over the own samples times this is the own part of the mean over all.
        """
        return 1.0

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors, each added up over the processes; whole numbers may come back as the first one's kind."""
        return list(tensors)

    def adding(self, params: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Return a context whose backward pass adds up the gradients of the parameters over the processes as it
        goes on."""
        return nullcontext()

    def sum_through(self, tensor: Tensor) -> Tensor:
        """Return one tensor added up over the processes; differentiable, in reverse and in forward mode."""
        return tensor

    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Everyone's rows (N, ...), in the order of ranks, and which are this process's; those keep their graph."""
        return tensor, slice(None)

    def all_true(self, ok: Tensor) -> Tensor:
        """Return whether a bool scalar is true on all of them."""
        return ok

    def max_over(self, number: int) -> int:
        """Return the largest of a number that each of them gives. Waits for the others, not for the device."""
        return number

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Write rank 0's values into the tensors of all."""

    def barrier(self) -> None:
        """Until all are here."""


ALONE = Ranks()
