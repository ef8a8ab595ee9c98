"""Streams shards as large as ImageNet's images through training, kills and resumes it, and times the loader alone.

    python benchmarks/shards.py resume --check
    python benchmarks/shards.py loader --check

20 shards of random JPEG images of 500x375 pixels in 1 000 classes are made first. `resume` trains the recipe
`imagenet_msdnet_step4` at batch 16 for 30 iterations, whole and killed on the way, by one process and by two, and
compares weights, optimizers and method to the bit. `loader` compares images a second of the loader with those of
decoding and cropping alone, of the same bytes in memory, by as many processes, in turns.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from common import Bar, finish, parser
from PIL import Image

from exitwise.data import Preprocessing, Splits, TrainingBatches
from exitwise.data.sources.files import read_image
from exitwise.runs.build import load_splits
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder

SHARDS, CLASSES, SIZE = 20, 1000, (500, 375)
TRAINING, HELD_OUT = 4000, CLASSES
RECIPE, BATCH, ITERATIONS = "imagenet_msdnet_step4", 16, 30
CHECKPOINT_EVERY, KILL_AFTER = 5, 15

CONTENTS: list[bytes] = []
TRANSFORM: list[Callable] = []
"""What processes that decode find there when they are forked: images, and what is done to each."""


def make_shards(root: Path) -> None:
    """Each image is noise of 32 by 24 pixels, enlarged: some 30 kB, as ImageNet's have some 100."""
    numbers = np.random.default_rng(0)
    for part, shards, count in (("train", SHARDS, TRAINING), ("val", 1, HELD_OUT), ("test", 1, HELD_OUT)):
        for shard, samples in enumerate(np.array_split(np.arange(count), shards)):
            with tarfile.open(root / f"{part}-{shard:04d}.tar", "w") as tar:
                for sample in samples:
                    noise = numbers.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                    buffer = io.BytesIO()
                    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                    add(tar, f"{sample:06d}.jpg", buffer.getvalue())
                    add(tar, f"{sample:06d}.cls", str(sample % CLASSES).encode())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def train(data: Path, out: Path, processes: int, workers: int, kill_after: int | None = None) -> None:
    """Train, to the end or until it is killed, amidst a step after the checkpoint of that iteration."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    flags = ["--recipe", RECIPE, "--data", data, "--batch-size", BATCH, "--max-iterations", ITERATIONS]
    flags += ["--device", "cpu", "--workers", workers, "--checkpoint-every", CHECKPOINT_EVERY, "--out", out]
    command = [sys.executable, *launcher, "-m", "exitwise", "train", *map(str, flags)]
    child = subprocess.Popen(command, start_new_session=True)
    while child.poll() is None:
        time.sleep(0.2)
        if kill_after is not None and (out / "checkpoints" / f"last-{kill_after:08d}").is_dir():
            time.sleep(1)
            for process in (child.pid, *below(child.pid)):
                os.kill(process, signal.SIGKILL)
            child.wait()
            return
    if child.returncode or kill_after is not None:
        sys.exit(f"expected a training that {'ends' if kill_after is None else 'is killed'}; got {child.returncode}")


def below(process: int) -> list[int]:
    """Return the processes that a process has started, and theirs: torchrun's have sessions of their own."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [each for child in map(int, listed.split()) for each in (child, *below(child))]


def state_of(run: Path) -> dict:
    """Everything that the rest of a training would depend on."""
    last = CheckpointFolder(run / "checkpoints").latest("last")
    assert last is not None
    tree = load_checkpoint(last)
    assert tree["progress"]["iteration"] == ITERATIONS
    return {name: tree[name] for name in ("model", "optimizer", "method", "random")}


def is_same(one: object, other: object) -> bool:
    """Whether two trees are the same to the bit."""
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def resumed(root: Path, workers: int, numbers: list[int]) -> tuple[dict, list[Bar]]:
    """Figures and bars of killed and resumed trainings."""
    figures, bars = {}, []
    for processes in numbers:
        whole, killed = root / f"whole-{processes}", root / f"killed-{processes}"
        train(root / "shards", whole, processes, workers)
        train(root / "shards", killed, processes, workers, kill_after=KILL_AFTER)
        train(root / "shards", killed, processes, workers)
        same = is_same(state_of(whole), state_of(killed))
        figures[f"{processes} processes"] = {"same": same}
        bars.append(
            Bar(f"killed after iteration {KILL_AFTER}, resumed: same bits, {processes} processes", same, 1, False)
        )
    return figures, bars


def decode(part: slice) -> int:
    """Decode and crop some images, and leave them; returns how many."""
    torch.set_num_threads(1)
    for content in CONTENTS[part]:
        TRANSFORM[0](read_image(content, 3))
    return len(CONTENTS[part])


def loaded(splits: Splits, workers: int) -> float:
    """Images a second of the loader, its workers being at work already."""
    batches = TrainingBatches(splits.train, BATCH, seed=random.randrange(10**6), workers=workers)
    iterator = iter(batches.loader)
    next(iterator)
    begun, images = time.monotonic(), 0
    for (positions, _, _), _ in iterator:
        images += len(positions)
    return images / (time.monotonic() - begun)


def decoded(workers: int) -> float:
    """Images a second of decoding and cropping alone."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(decode, [slice(1)] * workers, chunksize=1)
        begun = time.monotonic()
        images = sum(pool.map(decode, [slice(k, None, workers) for k in range(workers)], chunksize=1))
        return images / (time.monotonic() - begun)


def loader(root: Path, workers: int, rounds: int) -> tuple[dict, list[Bar]]:
    """Figures and the bar of the loader beside decoding alone."""
    begun = time.monotonic()
    splits = load_splits(compose(RECIPE, flags={"data": str(root / "shards"), "batch_size": BATCH}))
    seconds = time.monotonic() - begun
    torch.set_num_threads(1)
    assert isinstance(splits.train.preprocessing, Preprocessing)
    TRANSFORM.append(cast("Callable", splits.train.preprocessing.one_by_one()))
    for path in sorted((root / "shards").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            photos = [tar.extractfile(each) for each in tar if each.name.endswith(".jpg")]
            CONTENTS.extend(each.read() for each in photos if each is not None)
    pairs = [(loaded(splits, workers), decoded(workers)) for _ in range(rounds)]
    ratio = statistics.median(one / other for one, other in pairs)
    figures = {"pairs": pairs, "workers": workers, "samples_found_a_second": (TRAINING + 2 * HELD_OUT) / seconds}
    return figures, [Bar(f"loader over decoding and cropping alone, {workers} workers", ratio, 0.9, at_most=False)]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("what", choices=["resume", "loader"])
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to make shards and runs; a temporary folder if unset")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.folder or Path(temporary)
        if not (root / "shards").is_dir():
            (root / "shards").mkdir(parents=True)
            make_shards(root / "shards")
        figures, bars = (
            resumed(root, given.workers, given.processes)
            if given.what == "resume"
            else loader(root, given.workers, given.rounds)
        )
    finish(given, figures, bars)


if __name__ == "__main__":
    main()
