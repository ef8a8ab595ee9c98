"""A bundle on Ray Serve: a deployment per stage or group of stages, behind one address. Only survivors travel on.

The front reads requests and keeps each sample's thresholds and deadline. It hands on where the states of those that
stay lie, and the next replica fetches them from there.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from exitwise.deploy.bundle import read_bundle
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.states import bundle_digest
from exitwise.errors import UserError, in_a_line
from exitwise.processes.cluster import cluster
from exitwise.serving.access import Access
from exitwise.serving.app import create_app
from exitwise.serving.limits import Limits, check_limits
from exitwise.serving.ray_fleet import Fleet
from exitwise.serving.ray_stages import Stages, check_same
from exitwise.serving.service import Service

NAME = "exitwise"
"""Of the application."""

HEALTH_SECONDS = 5
"""Between two looks at a replica."""

Replicas = int | tuple[int, int]
"""Of a deployment: so many, or from least to most as the load is."""


class _Deployed(Service):
    def reload(self) -> None:
        """Raise UserError: stages and front are of one bundle."""
        raise UserError("a bundle on Ray is replaced by deploying another; got a reload")


_apps: list[FastAPI] = []


def _app() -> FastAPI:
    """Return the server that the front of this process has made."""
    return _apps[-1]


@serve.ingress(_app)
class Front:
    """What is asked over HTTP: reads it, sends samples through the deployments, answers.

    Args:
        handles: of the deployments, by their first stages.
        bundle: its folder.
        digest: by which it is recognised.
        tokens: files of :meth:`~exitwise.serving.access.Access.of`.
        limits: of requests.
        options: of :class:`~exitwise.serving.service.Service`.
    """

    def __init__(
        self,
        handles: dict[int, Any],
        bundle: str,
        digest: str,
        tokens: tuple[str | None, str | None],
        limits: Limits,
        options: dict[str, Any],
    ) -> None:
        check_same(bundle, digest)
        service = _Deployed(
            Path(bundle), schedule=partial(Fleet, handles=handles), threads=1, provider="cpu", **options
        )
        _apps.append(create_app(service, Access.of(*tokens), limits))


def serve_app(
    bundle: str | PathLike[str],
    replicas: str | Sequence[Replicas] = (),
    *,
    budget: float | None = None,
    shed_compute: bool = False,
    max_batch: int = 16,
    max_queue: int = 256,
    max_body_mb: float = 16.0,
    max_pixels: int = 50_000_000,
    timeout: float = 30.0,
    token_file: str | PathLike[str] | None = None,
    change_token_file: str | PathLike[str] | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> serve.Application:
    """Return the Ray Serve application of a bundle, for ``ray.serve.run`` or a configuration file.

    Args:
        bundle: an exported bundle, at the same path on every machine.
        replicas: of each stage in turn, such as ``(4, 2, 1)`` or ``"4,2,1"``; (1, 4) or ``"1-4"`` is from least to
            most, as the load is. The last is of all stages that are left together; without any, each has one.
        threads: of a replica: the cores that it reserves.
        device: ONNX Runtime's provider; a replica reserves a GPU for cuda and tensorrt.
        budget, shed_compute, max_batch, max_queue, max_body_mb, max_pixels, timeout, token_file, change_token_file: as
            of :func:`~exitwise.serve`; files of tokens lie on every machine.

    Raises:
        UserError: if the bundle is not what it says, or a number is out of range.
    """
    runner = OnnxRunner(Path(bundle), 1)
    if budget is not None:
        runner.thresholds_for(budget)
    Access.of(token_file, change_token_file)
    numbers = {"max_batch": max_batch, "max_queue": max_queue, "max_body_mb": max_body_mb, "max_pixels": max_pixels}
    check_limits(**numbers, timeout=timeout, threads=threads)
    place, digest = str(Path(bundle).absolute()), bundle_digest(Path(bundle))
    counts = parse_replicas(replicas, len(runner.chain))
    reserved = {"num_cpus": threads, "num_gpus": int(device in ("cuda", "tensorrt"))}
    how = {"threads": threads, "provider": device}
    handles = {}
    for first, (least, most) in enumerate(counts):
        end = first + 1 if first + 1 < len(counts) else len(runner.chain)
        deployment = serve.deployment(
            Stages,
            name=f"stage-{end}" if end == first + 1 else f"stages-{first + 1}-{end}",
            max_ongoing_requests=max_queue,
            ray_actor_options=reserved,
            health_check_period_s=HEALTH_SECONDS,
            **(
                {"num_replicas": least}
                if least == most
                else {
                    "autoscaling_config": {
                        "min_replicas": least,
                        "max_replicas": most,
                        "target_ongoing_requests": 2 * max_batch,
                    }
                }
            ),
        )
        handles[first] = deployment.bind(place, digest, first, end, max_batch, timeout, how)
    options = {
        "budget": budget,
        "shed_compute": shed_compute,
        "max_pixels": max_pixels,
        "max_batch": max_batch,
        "max_inside": max_queue,
        "stage_timeout": timeout,
    }
    tokens = tuple(None if file is None else str(Path(file).absolute()) for file in (token_file, change_token_file))
    front = serve.deployment(Front, name="front", max_ongoing_requests=4 * max_queue)
    return front.bind(handles, place, digest, tokens, Limits(int(max_body_mb * 2**20), timeout), options)


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application for a configuration file, whose ``args`` are the arguments of :func:`serve_app`."""
    return serve_app(**args)


def parse_replicas(replicas: str | Sequence[Replicas], stages: int) -> list[tuple[int, int]]:
    """Return the least and the most replicas of each deployment; the last is of all stages that are left.

    Raises:
        UserError: for numbers that are none, below 1 or too many.
    """
    wanted: Sequence[Replicas | str] = replicas.split(",") if isinstance(replicas, str) else replicas
    found = []
    for each in wanted or [1] * stages:
        try:
            ends = each.split("-") if isinstance(each, str) else [each] if isinstance(each, int) else each
            least, most = int(ends[0]), int(ends[-1])
        except (ValueError, TypeError, IndexError):
            least = most = 0
        if not 1 <= least <= most:
            raise UserError(f"expected replicas as 4,2,1 or 1-4,1-2,1; got {replicas}")
        found.append((least, most))
    if len(found) > stages:
        raise UserError(f"expected replicas of at most {stages} stages; got {replicas}")
    return found


def cores_of(bundle: str | PathLike[str], replicas: str | Sequence[Replicas], threads: int) -> int:
    """Return how many cores a bundle's replicas reserve, at most, with the front's."""
    return 1 + threads * sum(most for _, most in parse_replicas(replicas, len(read_bundle(Path(bundle)).stages)))


def run(app: serve.Application, host: str, port: int, cores: int, ready: Callable[[str], None] | None) -> None:
    """Serve an application until SIGTERM or Ctrl-C: on the cluster that ``RAY_ADDRESS`` names, or on Ray processes of
    its own on this machine, where replicas that reserve so many cores share those that there are.

    Raises:
        UserError: if it cannot be served.
    """
    port = _free(host, port)
    ended = threading.Event()
    with cluster(cores) as ours:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not in this thread
                signal.signal(number, lambda *_: ended.set())
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(app, name=NAME, route_prefix="/")
            if ready is not None:
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            ended.wait()
            serve.delete(NAME)
        except (RuntimeError, RayError, RayServeException) as error:
            raise UserError(f"Ray Serve does not run it: {in_a_line(error)}") from error
        finally:
            if ours:
                with suppress(Exception):
                    serve.shutdown()


def _free(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            found: int = listening.getsockname()[1]
            return found
    except (OSError, OverflowError) as error:
        raise UserError(f"expected an address to listen at; {host}:{port} is none: {error}") from error
