"""A server under ten times the load that it carries, and clients that are slow, over loopback."""

import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flowers import pngs
from slow_stages import slowed_by

pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow

STAGE_SECONDS, STAGES, MAX_BATCH, MAX_QUEUE = 0.02, 3, 2, 32
CARRIED = MAX_BATCH / (STAGE_SECONDS * STAGES)
"""Requests per second, where all go to the last exit."""

LIMIT = MAX_QUEUE / CARRIED
"""Seconds in which what is inside can be answered."""


@pytest.fixture(scope="module")
def server(flowers_bundle):
    words = ["serve", flowers_bundle, "--port", 0, "--threads", 1, "--timeout", 2]
    words += ["--max-batch", MAX_BATCH, "--max-queue", MAX_QUEUE]
    process = subprocess.Popen(
        [sys.executable, "-c", slowed_by(STAGE_SECONDS), *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    port = int(process.stdout.readline().rsplit(":", 1)[1])
    yield port, process.pid
    process.terminate()
    assert process.wait(20) == 0


def memory(pid):
    """Resident MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def ask(port, body):
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: image/png\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), time.perf_counter() - start, b"retry-after: 1" in answer.lower()


async def flood(port, rate, seconds):
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    start, tasks, files = time.perf_counter(), [], pngs(20)
    for number, at in enumerate(times):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(port, files[number % 20])))
    return await asyncio.gather(*tasks)


def test_ten_times_the_load(server):
    port, pid = server
    asyncio.run(flood(port, CARRIED / 2, 3))
    before = memory(pid)
    found = asyncio.run(flood(port, 10 * CARRIED, 30))
    after = memory(pid)
    time.sleep(2)
    again = asyncio.run(flood(port, CARRIED / 4, 3))
    statuses = Counter(status for status, *_ in found)
    latencies = np.array([seconds for status, seconds, _ in found if status == 200])
    print(statuses, f"p99 {np.quantile(latencies, 0.99):.2f} s of {LIMIT:.2f}, {before:.0f} to {after:.0f} MiB")
    assert set(statuses) <= {200, 429, 503}
    assert all(retry for status, _, retry in found if status != 200)
    assert statuses[200] > 0.8 * 30 * CARRIED
    assert np.quantile(latencies, 0.99) <= 2 * LIMIT
    assert after < before + 15
    assert {status for status, *_ in again} == {200}
    assert np.median([seconds for _, seconds, _ in again]) < 0.3 * LIMIT


def test_slow_clients_do_not_hold_others_up(server):
    port, _ = server
    slow = []
    for _ in range(50):
        client = socket.create_connection(("127.0.0.1", port), 10)
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 9999\r\n\r\nx")
        slow.append(client)
    status, seconds, _ = asyncio.run(ask(port, pngs(1)[0]))
    assert (status, seconds < 2) == (200, True)
    for client in slow:
        assert client.recv(100).startswith(b"HTTP/1.1 408")
        client.close()


def test_a_large_body_is_refused_before_it_has_come(server):
    port, pid = server
    before = memory(pid)
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 100000000\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port), 10) as client:  # without saying how long it is
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(100):
                client.sendall(b"100000\r\n" + 2**20 * b"x" + b"\r\n")
        except OSError:
            pass
        assert memory(pid) < before + 60
        assert client.recv(100).startswith(b"HTTP/1.1 413")
