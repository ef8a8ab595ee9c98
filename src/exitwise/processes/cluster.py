"""The Ray cluster that something runs on: one that is there, or Ray processes of its own on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from exitwise.errors import UserError, in_a_line


@contextmanager
def cluster(cores: int | None = None) -> Iterator[bool]:
    """Be connected to the cluster that this process already uses, or that ``RAY_ADDRESS`` names; else to Ray processes
    that end with the block.

    Args:
        cores: that those of its own may reserve; by default as many as there are.

    Yields:
        whether they are its own.

    Raises:
        UserError: if there is no cluster at the address, or none can be started.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {} if address else {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="WARNING", **own)
    except Exception as error:  # Ray raises plain ones, as where it is too slow to start
        raise UserError(f"expected a Ray cluster at {address or 'this machine'}; {in_a_line(error)}") from error
    try:
        yield not address
    finally:
        with suppress(Exception):
            ray.shutdown()
