"""Rows of numbers that are added and then read: in memory up to a limit, above it in a file that has no name.

A file without a name is gone when nobody reads it any more, also after an error or when the process is killed.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitwise.errors import UserError

MEMORY_LIMIT = 2 * 2**30
"""Bytes of rows that stay in memory."""


class Rows:
    """Rows (N, D), of one type.

    Args:
        limit: bytes that are held in memory; more are in a file, all of them.
        folder: where that file lies; None: the system's temporary folder.

    Raises:
        UserError: where there is no such folder.
    """

    def __init__(self, limit: int = MEMORY_LIMIT, folder: str | Path | None = None) -> None:
        self.limit = limit
        self.folder = tempfile.gettempdir() if folder is None else folder
        if not Path(self.folder).is_dir():
            raise UserError(f"expected a folder as keep_in; there is none at {folder}")
        self._parts: deque[Tensor] = deque()
        self._dtype = torch.float32
        self._file: Any = None
        self._count = 0
        self._bytes = 0

    @property
    def on_disk(self) -> bool:
        """Return whether they are in a file."""
        return self._file is not None

    def add(self, rows: Tensor) -> None:
        """Add rows (n, D), on the CPU.

        Raises:
            UserError: where they do not fit on the disk; nothing is left there.
        """
        self._parts.append(rows.contiguous())
        self._dtype = rows.dtype
        self._count += len(rows)
        self._bytes += rows.nbytes
        if self._bytes > self.limit:
            self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            while self._parts:
                self._file.write(self._parts[0].view(torch.uint8).numpy())
                self._parts.popleft()
            self._file.flush()
        except OSError as error:
            self.close()
            raise UserError(
                f"expected room in {self.folder} for what exits need of the samples, {self._bytes / 2**20:.0f} MiB so "
                f"far; {error.strerror} (nothing is left there: keep_in names another folder, float16 needs half)"
            ) from error

    def whole(self) -> Tensor:
        """Return all rows (N, D); those in a file as a map of it. Nothing is added afterwards."""
        if self._file is not None:
            mapped = np.memmap(self._file, np.uint8, mode="c", shape=(self._bytes,))
            self._file.close()  # the map holds it
            return torch.from_numpy(mapped).view(self._dtype).view(self._count, -1)
        whole = torch.empty(self._count, *self._parts[0].shape[1:], dtype=self._parts[0].dtype)
        start = 0
        while self._parts:  # one by one, so that they are not held twice
            part = self._parts.popleft()
            whole[start : start + len(part)] = part
            start += len(part)
        return whole

    def close(self) -> None:
        """Give up what was added."""
        self._parts.clear()
        if self._file is not None:
            self._file.close()
