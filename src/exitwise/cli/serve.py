"""``exitwise serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from exitwise.cli.progress import plain_console

_ASKED = {"images": "@IMAGE -H 'content-type: image/jpeg'", "texts": "TEXT -H 'content-type: text/plain'"}
"""What is sent, by what is classified."""


def serve(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    budget: float | None = None,
    shed_compute: bool = False,
    max_batch: int = 16,
    max_wait_ms: float = 50.0,
    max_queue: int = 256,
    max_body_mb: float = 16.0,
    max_pixels: int = 50_000_000,
    timeout: float = 30.0,
    token_file: Path | None = None,
    change_token_file: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    engine: Literal["local", "ray"] = "local",
    replicas: str = "",
) -> None:
    """Answer requests over HTTP by an exported bundle, batching anew before each stage what has not left.

    Examples:

        exitwise serve photos.bundle
        exitwise serve photos.bundle --budget 0.5 --shed-compute --max-batch 32
        exitwise serve photos.bundle --host 0.0.0.0 --token-file token --change-token-file changes
        exitwise serve photos.bundle --engine ray --replicas 4,2,1

    Parameters
    ----------
    bundle
        A folder that `exitwise export` wrote.
    host
        Address to listen at; by default this machine alone reaches it.
    port
        0 takes a free one.
    budget
        Share of the full network's MACs to spend at first, of the bundle's table; by default as calibrated.
    shed_compute
        Spend less per sample from when half of the places are taken, before any is refused.
    max_batch
        Samples at once in a stage.
    max_wait_ms
        After so long a sample soon goes before fuller queues.
    max_queue
        Samples that may be inside; more are refused with 429.
    max_body_mb
        Of a request, in MiB.
    max_pixels
        Of the images of a request together.
    timeout
        Seconds for a request to come, and for a stage to finish.
    token_file
        A file whose content each request must bring: Authorization: Bearer TOKEN.
    change_token_file
        A file whose content changes (budget, reload) must bring that do not come from this machine.
    workers
        Batches that run at a time. On a CPU as many as there are cores answer most; one answers a lone request soonest.
    threads
        Of a batch; by default the cores that may be used, shared among the workers.
    device
        cpu, cuda, openvino, ..., where the installed ONNX Runtime has it.
    engine
        local: this process. ray: Ray Serve, where each stage has processes of its own, on the cluster that RAY_ADDRESS
        names or on this machine.
    replicas
        On Ray, of each stage in turn, the last of all that are left; 1-4 is as many as the load asks for.
    """
    import exitwise as ew
    from exitwise.workflows.classifier import classifies

    console = plain_console()

    def ready(address: str) -> None:
        console.print(f"serving {bundle} at {address}")
        console.print(f"next: curl --data-binary {_ASKED[classifies(bundle)]} {address}/predict")

    ew.serve(
        bundle,
        host=host,
        port=port,
        budget=budget,
        shed_compute=shed_compute,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_body_mb=max_body_mb,
        max_pixels=max_pixels,
        timeout=timeout,
        token_file=token_file,
        change_token_file=change_token_file,
        workers=workers,
        threads=threads,
        device=device,
        engine=engine,
        replicas=replicas,
        ready=ready,
    )
    console.print("ended")
