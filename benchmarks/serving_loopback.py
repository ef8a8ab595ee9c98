"""ResNet-18 behind servers on loopback, for serving.py: bundles, the servers as processes of their own, and a client.

``python benchmarks/serving_loopback.py SYSTEM FOLDER MAX_BATCH`` serves and prints its port.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

SIDE, IMAGES = 224, 128
LEAVING = (0.5, 0.2, 0.15, 0.15)


def pictures() -> list[bytes]:
    """JPEG files of smooth pictures."""
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for _ in range(IMAGES):
        small = generator.integers(0, 256, (7, 7, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def write_bundles(folder: Path, files: list[bytes]) -> None:
    """Write ResNet-18 with exits after layers 1, 2 and 3 that images leave at as :data:`LEAVING` says, and without."""
    import torch
    from torch import nn
    from torchvision.models import resnet18

    from exitwise import ExitPolicy, OnnxRunner
    from exitwise.data import Preprocessing
    from exitwise.deploy.calibration import Calibration
    from exitwise.deploy.formats.onnx import export_onnx
    from exitwise.models.staged import Stage, StagedModel

    torch.manual_seed(0)
    net = resnet18().eval()
    bodies = [
        nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1),
        net.layer2,
        net.layer3,
        net.layer4,
    ]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)) for width in (64, 128, 256, 512)
    ]
    networks = {
        "exits": [Stage(body, head) for body, head in zip(bodies, heads, strict=True)],
        "full": [Stage(nn.Sequential(*bodies), heads[-1])],
    }
    preprocessing = Preprocessing(SIDE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=1.0)
    for name, stages in networks.items():
        model = StagedModel(stages, 1000, (3, SIDE, SIDE)).eval()
        thresholds: tuple[float, ...] = ()
        for attempt in range(1 + (len(stages) > 1)):
            out = folder / (name if attempt or len(stages) == 1 else "uncalibrated")
            policy = ExitPolicy(thresholds or (None,) * (len(stages) - 1))
            costs = tuple(range(1, len(stages) + 1))
            classes = list(map(str, range(1000)))
            export_onnx(model, Calibration.of(policy, costs), out, classes=classes, preprocessing=preprocessing)
            if not attempt and len(stages) > 1:
                runner = OnnxRunner(out)
                images = np.stack([runner.read_image(file) for file in files])
                logits = np.concatenate([runner.logits(images[i : i + 16]) for i in range(0, len(images), 16)])
                thresholds = leaving_thresholds(runner.calibration.policy.measure.read_all(logits)[0])


def leaving_thresholds(confidences: np.ndarray) -> tuple[float, ...]:
    """Return thresholds at which shares of the images leave as wished."""
    inside, found = np.arange(len(confidences)), []
    for k, share in enumerate(LEAVING[:-1]):
        order = inside[np.argsort(-confidences[inside, k])]
        leave = round(share * len(confidences))
        found.append(float((confidences[order[leave - 1], k] + confidences[order[leave], k]) / 2))
        inside = order[leave:]
    return tuple(found)


def stage_seconds(
    folder: Path, files: list[bytes], size: int, threads: int, rounds: int = 5
) -> tuple[list[float], float]:
    """Return seconds per image of each stage, and of the network without exits, in batches of a size, in turn."""
    from exitwise import OnnxRunner

    exits, full = OnnxRunner(folder / "exits", threads), OnnxRunner(folder / "full", threads)
    images = np.stack([exits.read_image(file) for file in files[:size]])
    times: list[list[float]] = []
    for _ in range(rounds):
        inside, row = exits.chain.enter({exits.inputs[0].name: images}), []
        for k in range(len(exits.chain)):
            start = time.perf_counter()
            _, inside = exits.chain.step(k, inside)
            row.append(time.perf_counter() - start)
        start = time.perf_counter()
        full.chain.step(0, full.chain.enter({full.inputs[0].name: images}))
        times.append([*row, time.perf_counter() - start])
    *stages, whole = (np.median(times, axis=0) / size).tolist()
    return stages, whole


class Server:
    """A server as a process."""

    def __init__(self, system: str, folder: Path, max_batch: int) -> None:
        command = [sys.executable, __file__, system, str(folder), str(max_batch)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        end = time.monotonic() + 60
        while time.monotonic() < end:  # some say their port before they listen
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.2)

    def pause(self) -> None:
        """Let it use no time while others are measured: LitServe asks its queues again and again."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with suppress(ProcessLookupError):  # LitServe leaves its workers behind
            os.killpg(self.process.pid, signal.SIGKILL)


class Answers:
    """What a load came to: seconds of each answer of status 200, when it came, and how many of each status."""

    def __init__(self) -> None:
        self.latencies: list[tuple[float, float]] = []
        self.statuses: Counter[int] = Counter()


def body_of(system: str, file: bytes) -> tuple[str, bytes]:
    """Return an image as a system takes it: content type and body."""
    if system != "litserve":
        return "image/jpeg", file
    return "application/json", json.dumps({"image": base64.b64encode(file).decode()}).encode()


def closed(port: int, bodies: list[tuple[str, bytes]], inside: int, seconds: float) -> Answers:
    """Keep so many requests of single images under way."""
    return asyncio.run(_closed(port, bodies, inside, seconds))


async def _closed(port: int, bodies: list[tuple[str, bytes]], inside: int, seconds: float) -> Answers:
    answers, start = Answers(), time.perf_counter()
    order = iter(np.random.default_rng(1).integers(0, len(bodies), 10**6).tolist())

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) - start < seconds:
            status = await request(reader, writer, *bodies[next(order)])
            now = time.perf_counter()
            answers.statuses[status] += 1
            if status == 200:
                answers.latencies.append((now - start, now - began))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(inside)))
    return answers


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, body: bytes) -> int:
    """Ask, and return the status of the answer."""
    head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])


def serve(system: str, folder: Path, max_batch: int) -> None:
    """Serve a system until it is ended; each keeps the memory that it frees, as the command line does."""
    import exitwise as ew

    ew.keep_memory()
    if system == "litserve":
        import serving_litserve

        serving_litserve.serve(folder, max_batch)
        return
    import exitwise.serving.service as service
    from exitwise.deploy.sessions import allowed_cores

    if system == "entrance":
        from serving import AtEntrance

        service.Scheduler = AtEntrance  # type: ignore[misc,assignment]
    bundle = folder / ("full" if system == "full" else "exits")

    def ready(address: str) -> None:
        print(address.rsplit(":", 1)[1], flush=True)

    ew.serve(bundle, port=0, max_batch=max_batch, max_queue=1024, workers=allowed_cores(), ready=ready)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
