"""The checkpoints of one run: which are kept, and which one to continue from.

Knows nothing of what they hold. One process writes at a time.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.errors import ExitwiseWarning
from exitwise.training.checkpoint import CheckpointError, load_checkpoint, remove_checkpoint, save_checkpoint

KEEP = 2
"""The ``last`` checkpoints kept, so that there is another one where the newest is damaged."""


class Found(NamedTuple):
    """A checkpoint that is intact: its folder, and the tree in it."""

    path: Path
    tree: Any


class CheckpointFolder:
    """The checkpoints of one run, named by kind and iteration: ``last-00000100``, ``best-00000080``.

    Args:
        root: the folder that holds them; made when first written to.
        keep: how many of the kind ``last`` to keep; of any other kind, one.
    """

    def __init__(self, root: Path, keep: int = KEEP) -> None:
        self.root = root
        self.keep = keep

    def save(self, kind: str, iteration: int, tree: Any) -> None:
        """Write a checkpoint, in place of one of the same name, then remove those of its kind that are not kept.

        Raises:
            CheckpointError: if the tree holds a value that is not finite; nothing is changed then.
            OSError: if it cannot be written; nothing is changed then.
        """
        folder = self.root / f"{kind}-{iteration:08d}"
        save_checkpoint(folder, tree)
        others = [path for path in self._folders(kind) if path != folder]
        older = [path for path in others if path < folder]
        kept = older[-(self.keep - 1) :] if kind == "last" and self.keep > 1 else []
        for path in others:
            if path not in kept:
                remove_checkpoint(path)

    def latest(self, kind: str) -> Path | None:
        """Return the newest checkpoint of a kind."""
        return max(self._folders(kind), default=None)

    def load(self, kind: str) -> Found | None:
        """Return the newest checkpoint of a kind that is intact, with a warning if it is not the newest; None without
        any.

        Raises:
            CheckpointError: if there are some, and none is intact.
        """
        problem: CheckpointError | None = None
        for path in reversed(self._folders(kind)):
            try:
                found = Found(path, load_checkpoint(path))
            except CheckpointError as error:
                problem = problem or error
                continue
            if problem is not None:
                warnings.warn(f"{problem}; continuing from {path.name} before it", ExitwiseWarning, stacklevel=2)
            return found
        if problem is not None:
            raise CheckpointError(f"{problem}; there is no other to continue from: remove {self.root} to start again")
        return None

    def tidy(self) -> None:
        """Remove what a killed process left of checkpoints that it was writing or removing."""
        for path in self.root.glob(".*"):
            if re.fullmatch(r"\.\w+-\d{8,}\.\w+", path.name):
                shutil.rmtree(path)

    def _folders(self, kind: str) -> list[Path]:
        """Checkpoints of a kind, oldest first. What else lies there, such as a copy of someone's, is left alone."""
        return sorted(path for path in self.root.glob(f"{kind}-*") if re.fullmatch(rf"{kind}-\d{{8,}}", path.name))
