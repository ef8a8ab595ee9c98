"""Serve an exported bundle over HTTP, until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.sessions import allowed_cores
from exitwise.errors import UserError, in_a_line
from exitwise.serving.limits import Limits, check_limits

if TYPE_CHECKING:
    from exitwise.serving.service import Service

ENGINES = ("local", "ray")

DRAIN_SECONDS = 30
"""For requests that have come when the server is told to end."""


def serve(
    bundle: str | PathLike[str],
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
    token_file: str | PathLike[str] | None = None,
    change_token_file: str | PathLike[str] | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    engine: str = "local",
    replicas: str | Sequence[int | tuple[int, int]] = (),
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer requests by a bundle until SIGTERM or Ctrl-C, which let those inside be answered first. SIGHUP reloads it.

    Args:
        bundle: an exported bundle.
        host, port: to listen at; port 0 takes a free one.
        budget: the dial at first: share of the full network's MACs, of the bundle's table; None: as calibrated.
        shed_compute: whether samples may spend less as places run out.
        max_batch: samples at once in a stage.
        max_wait_ms: after so long a sample soon goes before fuller queues.
        max_queue: samples that may be inside; more are refused.
        max_body_mb: of a request, in MiB.
        max_pixels: of the images of a request together.
        timeout: seconds for a request to come, and for a stage to finish.
        token_file: whose content each request must bring.
        change_token_file: whose content changes of the server must bring that do not come from loopback.
        workers: batches that run at a time. On a CPU as many as cores answer most; one answers a lone request soonest.
        threads: of a batch; by default the cores that may be used, shared among the workers, and one in a replica.
        device: ONNX Runtime's provider.
        engine: ``local``, one process; or ``ray``, where each stage has replicas (Ray Serve does the waiting then, and
            max_wait_ms is not used; nothing is reloaded).
        replicas: on Ray, of :func:`~exitwise.serve_app`.
        ready: called with the address once requests are taken.

    Raises:
        UserError: if the bundle is not what it says, an address cannot be had, or a limit is out of range.
    """
    if engine not in ENGINES:
        raise UserError(f"expected engine as {' or '.join(ENGINES)}; got {engine}")
    numbers = {"max_batch": max_batch, "max_queue": max_queue, "max_body_mb": max_body_mb, "max_pixels": max_pixels}
    times = {"timeout": timeout, "max_wait_ms": max_wait_ms}
    check_limits(**numbers, **times, workers=workers, threads=1 if threads is None else threads)
    if engine == "ray":
        if workers > 1:
            raise UserError(f"workers are for engine local, replicas for ray; got {workers}")
        with needing_extras("serving on Ray"):
            from exitwise.serving import on_ray

        app = on_ray.serve_app(
            bundle,
            replicas,
            budget=budget,
            shed_compute=shed_compute,
            max_batch=max_batch,
            max_queue=max_queue,
            max_body_mb=max_body_mb,
            max_pixels=max_pixels,
            timeout=timeout,
            token_file=token_file,
            change_token_file=change_token_file,
            threads=threads or 1,
            device=device,
        )
        on_ray.run(app, host, port, on_ray.cores_of(bundle, replicas, threads or 1), ready)
        return
    if replicas:
        raise UserError(f"replicas are for engine ray; got {replicas} with engine {engine}")
    with needing_extras("serving"):
        import uvicorn

        from exitwise.serving.access import Access
        from exitwise.serving.app import create_app
        from exitwise.serving.service import Service

    access = Access.of(token_file, change_token_file)
    listening = _listen(host, port)
    service: Service | None = None
    try:
        service = Service(
            Path(bundle),
            budget=budget,
            shed_compute=shed_compute,
            threads=threads or max(1, allowed_cores() // workers),
            provider=device,
            max_pixels=max_pixels,
            max_batch=max_batch,
            workers=workers,
            max_wait=max_wait_ms / 1000,
            max_inside=max_queue,
            stage_timeout=timeout,
        )
        app = create_app(service, access, Limits(int(max_body_mb * 2**20), timeout))

        class Server(uvicorn.Server):
            def capture_signals(self) -> Any:  # they are ours
                return nullcontext()

        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as loop:
            loop.run(_serve(Server(config), listening, service, app, ready))
    finally:
        listening.close()
        if service is not None:
            service.close(DRAIN_SECONDS)


async def _serve(
    server: Any, listening: socket.socket, service: Service, app: Any, ready: Callable[[str], None] | None
) -> None:
    loop = asyncio.get_running_loop()

    def end() -> None:
        app.state.server.draining = True
        server.should_exit = True

    async def reload() -> None:
        try:
            await asyncio.to_thread(service.reload)
        except UserError as error:
            service.log.warning("not reloaded: %s", in_a_line(error))

    tasks = set()

    def hang_up() -> None:
        tasks.add(asyncio.ensure_future(reload()))

    handlers = {
        signal.SIGTERM: end,
        signal.SIGINT: end,
        **({signal.SIGHUP: hang_up} if hasattr(signal, "SIGHUP") else {}),
    }
    for number, handler in handlers.items():
        _handle(loop, number, handler)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if ready is not None and server.started:
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    await serving


def _handle(loop: asyncio.AbstractEventLoop, number: signal.Signals, handler: Callable[[], None]) -> None:
    with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals on this system, or not in this thread
        loop.add_signal_handler(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"expected an address to listen at; {host}:{port} is none: {error}") from error
