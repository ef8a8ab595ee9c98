"""Looks over the machine: versions, devices, threads, disk, shared memory, and whether worker processes start."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from exitwise.deploy.sessions import allowed_cores
from exitwise.doctor import Finding

PACKAGES = ("exitwise", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
OPTIONAL = ("onnxruntime", "transformers")

LITTLE_DISK, NO_DISK = 2 * 2**30, 100 * 2**20
"""Bytes free where runs go: below the first a run of a large network may fill the disk; below the second, any."""

LITTLE_SHARED = 256 * 2**20
"""Bytes of shared memory, through which worker processes hand over batches; containers often have 64 MiB."""

START_SECONDS = 60
SHARED = Path("/dev/shm")


def examine_machine(workers: int, runs: Path) -> Iterator[Finding]:
    """Look over the machine.

    Args:
        workers: processes that are to read images.
        runs: the folder where runs go; it need not be there yet.
    """
    yield Finding("fine", _versions())
    yield from _devices()
    yield _threads(workers)
    yield _disk(runs)
    if workers:
        if SHARED.is_dir():
            yield _shared_memory(shutil.disk_usage(SHARED).free)
        yield _worker_start(workers)


def _versions() -> str:
    found = [f"Python {sys.version.split()[0]}"]
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("fine", "no GPU; training runs on the CPU")
    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"
        try:
            torch.ones(2, device=device).sum().item()
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            yield Finding("problem", f"{device} does not compute: {reason}", "use --device cpu, or mend its driver")
        else:
            memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            yield Finding("fine", f"{device}: {torch.cuda.get_device_name(number)}, {memory}")


def _threads(workers: int) -> Finding:
    cores = allowed_cores()
    text = f"{cores} CPU cores, {torch.get_num_threads()} threads of torch, {workers} workers"
    if workers > cores:
        return Finding("warning", text, f"more workers than cores slow one another down; use --workers {cores}")
    return Finding("fine", text)


def _disk(runs: Path) -> Finding:
    runs = runs.absolute()
    folder = next(parent for parent in (runs, *runs.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding("problem", f"nothing can be written to {folder}", "choose another --out")
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free for runs in {folder}"
    if free < LITTLE_DISK:
        return Finding("problem" if free < NO_DISK else "warning", text, "make room, or choose another --out")
    return Finding("fine", text)


def _shared_memory(free: int) -> Finding:
    text = f"{free / 2**20:.0f} MiB of shared memory free"
    if free < LITTLE_SHARED:
        return Finding("warning", text, "give the container more (docker run --shm-size 2g), or use --workers 0")
    return Finding("fine", text)


def _worker_start(workers: int) -> Finding:
    """Return whether processes can be started that hand over tensors."""
    started = time.monotonic()
    try:
        list(DataLoader(torch.arange(workers), num_workers=workers, timeout=START_SECONDS))  # type: ignore[arg-type]
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        return Finding("problem", f"worker processes do not start: {reason}", "use --workers 0")
    return Finding("fine", f"{workers} workers started in {time.monotonic() - started:.1f} s")
