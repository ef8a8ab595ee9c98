"""Memory that a process keeps when it is freed, for it will want as much again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _NEVER, _NONE = -1, -4, -1, 0
"""Of glibc's malloc.h: parameters of mallopt, and what they are set to."""


def keep_memory() -> bool:
    """Keep memory that is freed, in place of handing it back to the system; returns whether that can be done here.

    A training step frees what it has taken, and the next takes as much again. glibc gives large pieces back each time,
    and the system clears every page anew, which takes longer than the mathematics of small networks. It holds for the
    whole process, whose memory stays as large as it once was, and for processes forked from it. The command line does
    it by itself. On other systems than Linux with glibc nothing happens.
    """
    setter = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return setter is not None and all([setter(_MMAP_MAX, _NONE), setter(_TRIM_THRESHOLD, _NEVER)])
