"""Many images by `exitwise predict`: its time beside decoding and inference alone, its memory, and a stop by force.

ResNet-18 at 224 pixels with three exits that 50, 20 and 15 % leave at. Before and after the command, half of the images
is decoded and half is classified alone, on the same cores and in batches of the same size. Then the command is killed
at a third and called again: its table must be the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import serving_loopback as loopback
from common import Bar, finish, parser

import exitwise as ew
from exitwise.deploy.sessions import allowed_cores
from exitwise.workflows.predict import BATCH

KILLED_AT = 1 / 3


def timed(work: Callable[[], Any]) -> float:
    """Return seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode_alone(runner: ew.OnnxRunner, files: list[Path]) -> float:
    """Return seconds of reading so many files as inputs, a thread for each core."""
    with ThreadPoolExecutor(allowed_cores()) as pool:
        return timed(lambda: [None for _ in pool.map(lambda file: runner.read(file) and None, files, chunksize=8)])


def infer_alone(runner: ew.OnnxRunner, arrays: np.ndarray, count: int) -> float:
    """Return seconds of classifying so many images, each of those that are in memory as often as it takes."""
    name = runner.inputs[0].name

    def work() -> None:
        for start in range(0, count, BATCH):
            runner({name: arrays.take(range(start, min(start + BATCH, count)), axis=0, mode="wrap")})

    return timed(work)


def command(bundle: Path, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the command."""
    arguments = ["predict", str(bundle), str(folder), "--output", str(output)]
    return subprocess.Popen([sys.executable, "-m", "exitwise", *arguments], stdout=subprocess.DEVNULL)


def memory_of(pid: int) -> float:
    """Return MiB that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def whole(bundle: Path, folder: Path, output: Path) -> tuple[float, list[float]]:
    """Run the command to its end; return seconds, and MiB each half second."""
    start = time.perf_counter()
    held: list[float] = []
    child = command(bundle, folder, output)
    while True:
        try:
            if child.wait(0.5):
                raise SystemExit(f"predict ended with {child.returncode}")
            return time.perf_counter() - start, held
        except subprocess.TimeoutExpired:
            held.append(memory_of(child.pid))


def killed_and_resumed(bundle: Path, folder: Path, output: Path, count: int) -> int:
    """Kill the command at a third, and run it to its end; return how many rows there were then."""
    partial = output.with_name(output.name + ".partial")

    def rows() -> int:
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    child = command(bundle, folder, output)
    while rows() < KILLED_AT * count:
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = rows()
    whole(bundle, folder, output)
    return there


def main() -> None:
    """Measure."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--images", type=int, default=20_000)
    options = arguments.parse_args()
    count = options.images
    ew.keep_memory()
    with tempfile.TemporaryDirectory() as place:
        folder, images = Path(place), Path(place, "images")
        images.mkdir()
        pictures = loopback.pictures()
        for number in range(count):
            (images / f"{number:06}.jpg").write_bytes(pictures[number % len(pictures)])
        loopback.write_bundles(folder, pictures)
        runner = ew.OnnxRunner(folder / "exits")
        files = sorted(images.iterdir())
        arrays = np.stack([runner.read_image(file) for file in pictures])
        infer_alone(runner, arrays, 4 * BATCH)  # the first batches find their memory
        decoding = decode_alone(runner, files[: count // 2])
        inferring = infer_alone(runner, arrays, count // 2)
        seconds, held = whole(folder / "exits", images, folder / "whole.csv")
        inferring += infer_alone(runner, arrays, count - count // 2)
        decoding += decode_alone(runner, files[count // 2 :])
        print(f"{count} images: {seconds:.1f} s; decoding alone {decoding:.1f} s, inference alone {inferring:.1f} s")
        early, late = (float(np.median(part)) for part in np.array_split(held[len(held) // 5 :], 2))
        print(f"memory: {early:.0f} MiB in the first half, {late:.0f} in the second", flush=True)
        there = killed_and_resumed(folder / "exits", images, folder / "resumed.csv", count)
        same = (folder / "whole.csv").read_bytes() == (folder / "resumed.csv").read_bytes()
        print(f"killed at {there} rows and resumed: {'the same table' if same else 'ANOTHER TABLE'}")
    figures = {"images": count, "seconds": seconds, "decoding": decoding, "inference": inferring, "MiB": held}
    finish(
        options,
        figures,
        [
            Bar("wall time / (decoding alone + inference alone)", seconds / (decoding + inferring), 1.1),
            Bar("memory, second half / first", late / early, 1.05),
            Bar("same table after a kill", float(same), 1, at_most=False),
        ],
    )


if __name__ == "__main__":
    main()
