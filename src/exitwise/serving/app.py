"""The server: what is asked over HTTP is read, scheduled and answered. Knows no graph and no queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from exitwise.deploy.chain import Inside
from exitwise.deploy.sessions import allowed_cores
from exitwise.deploy.split import STATE_TYPE
from exitwise.errors import UserError, in_a_line
from exitwise.exiting.rule import Thresholds
from exitwise.serving.access import Access, DeniedError
from exitwise.serving.bodies import Asked, MediaTypeError, SlowError, arrays_of, asked, read_body
from exitwise.serving.fates import FullError, LateError, Left, RefusedError
from exitwise.serving.limits import Limits
from exitwise.serving.metrics import Metrics
from exitwise.serving.service import Dial, Live, NoAnswerError, Service, TooLargeError
from exitwise.version import __version__

RETRY_SECONDS = 1
PAGE = {"page.html": "text/html; charset=utf-8", "page.js": "text/javascript", "page.css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (FullError, 429),
    (RefusedError, 503),
    (TooLargeError, 413),
    (MediaTypeError, 415),
    (SlowError, 408),
    (NoAnswerError, 422),
    (UserError, 400),
    (ClientDisconnect, 400),
)
"""What each error is answered with; the first that fits."""


class BudgetWish(BaseModel):
    """The dial: a share of the full network's MACs, of the bundle's table; None: as calibrated."""

    model_config = ConfigDict(extra="forbid")

    budget: float | None = Field(gt=0, allow_inf_nan=False)


def create_app(service: Service, access: Access | None = None, limits: Limits | None = None) -> FastAPI:
    """Return the server of a bundle, for uvicorn or another.

    Args:
        service: what is served; who made it closes it.
        access: tokens.
        limits: of requests.
    """
    server = _Server(service, access or Access(), limits or Limits())
    app = FastAPI(title="exitwise", version=__version__, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, server.no_endpoint)
    app.state.server = server
    for path, method, endpoint in (
        ("/predict", "POST", server.predict),
        ("/continue", "POST", server.go_on),
        ("/budget", "GET", server.get_budget),
        ("/budget", "PUT", server.put_budget),
        ("/reload", "POST", server.reload),
        ("/health", "GET", server.health),
        ("/ready", "GET", server.ready),
        ("/metrics", "GET", server.metrics),
        ("/", "GET", server.page),
        ("/page.js", "GET", server.page),
        ("/page.css", "GET", server.page),
    ):
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        app.add_api_route(path, server.answering(endpoint), methods=methods, response_model=None)
    return app


class _Server:
    def __init__(self, service: Service, access: Access, limits: Limits) -> None:
        self.service, self.access, self.limits = service, access, limits
        self.counted = Metrics(service)
        self.draining = False
        self.reading = 0
        self.readers = ThreadPoolExecutor(allowed_cores(), "exitwise-reading")

    def answering(self, endpoint: Callable[[Request], Awaitable[Response | dict[str, Any]]]) -> Any:
        """Return an endpoint whose errors are answered in a line of JSON, and which is counted."""

        async def answered(request: Request) -> Response:
            start = time.perf_counter()
            try:
                said = await endpoint(request)
                response = said if isinstance(said, Response) else JSONResponse(said)
            except DeniedError as error:
                response = _error(error.status, str(error))
                response.headers["www-authenticate"] = "Bearer"
            except tuple(kind for kind, _ in STATUS) as error:
                status = next(code for kind, code in STATUS if isinstance(error, kind))
                response = _error(status, in_a_line(error))
                if status in (429, 503):
                    response.headers["retry-after"] = str(RETRY_SECONDS)
            if request.url.path == "/predict":
                self.counted.seconds.observe(time.perf_counter() - start)
            self.counted.responses.labels(str(response.status_code)).inc()
            response.headers["x-content-type-options"] = "nosniff"
            return response

        answered.__name__, answered.__doc__ = endpoint.__name__, endpoint.__doc__
        return answered

    async def no_endpoint(self, request: Request, error: Exception) -> Response:
        """Answer a path or a method that there is not."""
        assert isinstance(error, HTTPException)
        self.counted.responses.labels(str(error.status_code)).inc()
        return _error(error.status_code, f"{error.detail}: {request.method} {request.url.path[:80]}")

    async def predict(self, request: Request) -> Response:
        """Classify images or texts, each as deep as it needs."""
        self.access.check(request)
        self._check_room(self.service.live, 1)
        wanted = await asked(request, await read_body(request, self.limits))
        with self._using() as live:
            return await self._answer(live, wanted, live.continued.thresholds_of(request.headers))

    @contextmanager
    def _using(self) -> Iterator[Live]:
        """Yield the bundle that is served now, which stays until the request is answered."""
        live = self.service.live
        live.users += 1
        try:
            yield live
        finally:
            live.users -= 1

    def _check_room(self, live: Live, samples: int) -> None:
        if live.scheduler.inside + self.reading + samples > live.scheduler.max_inside:
            live.scheduler.refused += samples
            raise FullError("as many samples are inside as may be")

    async def _answer(self, live: Live, asked: Asked, thresholds: Thresholds | None) -> Response:
        start = time.perf_counter()
        if asked.samples > live.scheduler.max_inside:
            raise TooLargeError(f"expected at most {live.scheduler.max_inside} samples; got {asked.samples}")
        self._check_room(live, asked.samples)
        wish = asked.wish
        live.dial(wish.budget)  # a budget that there is not costs no decoding
        until = None if wish.deadline_ms is None else start + wish.deadline_ms / 1000
        self.reading += asked.samples
        try:
            async with asyncio.timeout(None if until is None else until - start):
                inside = await asyncio.get_running_loop().run_in_executor(self.readers, _read, live, asked, until)
        except TimeoutError:
            live.scheduler.late += asked.samples
            raise LateError("its deadline passed before it was read") from None
        finally:
            self.reading -= asked.samples
        seconds = None if until is None else until - time.perf_counter()
        dial, futures = self.service.submit(live, inside, wish.budget, seconds, thresholds)
        fates = await _fates(futures)
        live.note(fates, time.perf_counter() - start)
        return JSONResponse({"answers": [live.says(each, dial, wish.top) for each in fates]})

    async def go_on(self, request: Request) -> Response:
        """Answer samples whose first stages a device has run."""
        self.access.check(request)
        if request.headers.get("content-type", "") != STATE_TYPE:
            raise MediaTypeError(f"expected {STATE_TYPE}; got another type")
        body = await read_body(request, self.limits)
        with self._using() as live:
            inside, stage, thresholds = await asyncio.to_thread(live.continued.unpack, body)
            fates = await _fates(live.scheduler.submit(inside, thresholds, None, stage))
            dial = Dial(None, thresholds)
            return JSONResponse({"answers": [live.says(each, dial) for each in fates]})

    async def get_budget(self, request: Request) -> dict[str, Any]:
        """Return the dial, and the budgets that there are."""
        self.access.check(request)
        live = self.service.live
        table = live.runner.calibration.table
        return {
            "budget": self.service.budget,
            "thresholds": list(live.dial(self.service.budget).thresholds),
            "budgets": [{"budget": line.budget, "accuracy": line.accuracy, "macs": line.macs} for line in table],
            "takes": live.runner.manifest.noun,
        }

    async def put_budget(self, request: Request) -> dict[str, Any]:
        """Turn the dial, for samples that come from now on."""
        self.access.check_change(request)
        body = await read_body(request, self.limits, most=10_000)
        try:
            wish = BudgetWish.model_validate_json(body)
        except ValidationError as error:
            raise UserError('expected {"budget": 0.5}, with a share of the full network\'s MACs or null') from error
        self.service.set_budget(wish.budget)
        return await self.get_budget(request)

    async def reload(self, request: Request) -> dict[str, Any]:
        """Serve what is in the bundle's folder now, if it is whole; else go on with what is served."""
        self.access.check_change(request)
        await asyncio.to_thread(self.service.reload)
        return {"reloads": self.service.reloads}

    async def health(self, request: Request) -> dict[str, Any]:
        """Say that the process is there."""
        return {"status": "ok"}

    async def ready(self, request: Request) -> Response:
        """Say whether requests are taken."""
        return _error(503, "it is being stopped") if self.draining else JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return figures for Prometheus."""
        self.access.check(request)
        return Response(generate_latest(self.counted.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        """Return the page, which needs no token: what it asks for does."""
        name = request.url.path.strip("/") or "page.html"
        content = files("exitwise.serving").joinpath("page", name).read_bytes()
        return Response(content, media_type=PAGE[name], headers={"content-security-policy": POLICY})


async def _fates(futures: Sequence[Future[Left]]) -> list[Left]:
    """Return the fates of a request's samples; where one has none, the others are given up."""
    try:
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    finally:
        for future in futures:
            future.cancel()


def _read(live: Live, asked: Asked, until: float | None) -> Inside:
    if asked.images is not None:
        return live.read_images(asked.images, until)
    if asked.texts is not None:
        return live.read_texts(asked.texts)
    return live.enter(arrays_of(asked, live))


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message.encode(errors="backslashreplace").decode()}, status)
