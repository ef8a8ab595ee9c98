"""What a request brings: images, texts or arrays, from a body of any kind it may have. Decodes no image."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from exitwise.errors import UserError
from exitwise.serving.fates import FullError
from exitwise.serving.limits import Limits
from exitwise.serving.service import Live, TooLargeError

MOST_MILLISECONDS, MOST_TOP = 3_600_000, 1000


class MediaTypeError(UserError):
    """A body of a type that is not known."""


class SlowError(UserError):
    """A body that took too long to come."""


class Wish(BaseModel):
    """What a request asks for beside the samples.

    Attributes:
        budget: share of the full network's MACs, of the bundle's table; None: as dialled.
        deadline_ms: after so long each sample is answered with the best exit reached.
        top: likeliest classes to name.
    """

    model_config = ConfigDict(extra="forbid")

    budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    deadline_ms: float | None = Field(None, gt=0, le=MOST_MILLISECONDS, allow_inf_nan=False)
    top: int = Field(1, ge=1, le=MOST_TOP)


class Content(Wish):
    """A body of JSON: one kind of samples, one or many. Images are files in base64; inputs are arrays by name."""

    image: str | None = None
    images: list[str] | None = None
    text: str | None = None
    texts: list[str] | None = None
    inputs: dict[str, Any] | None = None


class Asked(NamedTuple):
    """A request: of these one is not None."""

    wish: Wish
    images: list[bytes] | None = None
    texts: list[str] | None = None
    inputs: dict[str, Any] | None = None

    @property
    def samples(self) -> int:
        """How many samples it brings."""
        first = self.images or self.texts or next(iter((self.inputs or {}).values()), [])
        return len(first) if isinstance(first, list) else 1


async def read_body(request: Request, limits: Limits, most: int | None = None) -> bytes:
    """Return a body.

    Raises:
        TooLargeError: for one of more than ``most`` bytes; by default as the limits say.
        SlowError: if it takes longer.
        FullError: if bodies that are coming hold as much as they may.
    """
    most = limits.max_body if most is None else most
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise TooLargeError(f"expected a body of at most {most} bytes; got one of {length[:20]}")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                limits.coming += len(chunk)
                if size > most:
                    raise TooLargeError(f"expected a body of at most {most} bytes; got more")
                if limits.coming > limits.max_coming:
                    raise FullError("bodies that are coming hold as many bytes as they may")
                chunks.append(chunk)
    except TimeoutError:
        raise SlowError(f"expected a body within {limits.body_seconds:g} s; got {size} bytes") from None
    finally:
        limits.coming -= size
    return b"".join(chunks)


async def asked(request: Request, body: bytes) -> Asked:
    """Return what a request asks for: its wishes may be in the query, in JSON or in fields of a form.

    Raises:
        MediaTypeError: for a body of another type.
        UserError: for one that is not of its type, or brings nothing.
    """
    query = dict(request.query_params)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files, fields = await _form(request, body)
        return Asked(_wish({**query, **fields}), images=files)
    if kind == "application/json":
        return _from_json(query, body)
    if kind == "text/plain":
        try:
            return Asked(_wish(query), texts=[body.decode()])
        except UnicodeDecodeError as error:
            raise UserError(f"expected a text in UTF-8; {error.reason} at byte {error.start}") from error
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return Asked(_wish(query), images=[body])
    raise MediaTypeError(
        "expected image/*, application/octet-stream, multipart/form-data, application/json or text/plain; "
        f"got {kind[:80] or 'no content type'}"
    )


def arrays_of(asked: Asked, live: Live) -> dict[str, Any]:
    """Return arrays that came as lists, in the types of the bundle's inputs.

    Raises:
        UserError: for what is no array.
    """
    types = {each.name: each.type for each in live.runner.inputs}
    found = {}
    for name, values in (asked.inputs or {}).items():
        try:
            found[name] = np.array(values, types.get(name, "float32"))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"expected {name[:80]} as numbers in lists of equal lengths; {error}") from error
    return found


def _from_json(query: dict[str, str], body: bytes) -> Asked:
    try:
        content = Content.model_validate_json(body)
    except ValidationError as error:
        raise UserError(_explained(error)) from error
    given = {name for name in ("image", "images", "text", "texts", "inputs") if getattr(content, name)}
    if len(given) != 1:
        raise UserError(
            f"expected one of image, images, text, texts or inputs; got {', '.join(sorted(given)) or 'none'}"
        )
    said = {name: getattr(content, name) for name in Wish.model_fields if name in content.model_fields_set}
    wish = _wish({**query, **said})
    if content.inputs:
        return Asked(wish, inputs=content.inputs)
    if content.text or content.texts:
        return Asked(wish, texts=content.texts or [content.text or ""])
    return Asked(wish, images=[_decoded(each) for each in content.images or [content.image or ""]])


def _decoded(image: str) -> bytes:
    try:
        return base64.b64decode(image.split(",", 1)[1] if image.startswith("data:") else image, validate=True)
    except (binascii.Error, ValueError, IndexError) as error:
        raise UserError(f"expected images in base64; {error}") from error


def _wish(given: dict[str, Any]) -> Wish:
    try:
        return Wish.model_validate(given)
    except ValidationError as error:
        raise UserError(_explained(error)) from error


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    return f"expected {where or 'JSON'} otherwise: {first['msg']}"


async def _form(request: Request, body: bytes) -> tuple[list[bytes], dict[str, str]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(
            request.headers, stream(), max_files=math.inf, max_fields=100, max_part_size=len(body) + 1
        ).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise UserError(f"expected a form of files; {getattr(error, 'message', error)}") from error
    files, fields = [], {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(await value.read())
        else:
            fields[name] = value
    await form.close()
    if not files:
        raise UserError("expected at least one file in the form; got none")
    return files, fields
