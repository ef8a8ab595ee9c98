"""Who may ask, and who may change the server."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request

from exitwise.errors import UserError


class DeniedError(Exception):
    """A request that may not be made so.

    Attributes:
        status: 401 without its token, 403 where no token would help.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Access:
    """Tokens: for requests, and for changes from anywhere but loopback; None: none is needed, or none would do."""

    token: str | None = None
    change_token: str | None = None

    @classmethod
    def of(cls, token_file: str | PathLike[str] | None, change_token_file: str | PathLike[str] | None) -> Access:
        """Return the tokens in files.

        Raises:
            UserError: for a file that holds none.
        """
        return cls(_token(token_file), _token(change_token_file))

    def check(self, request: Request) -> None:
        """Raise DeniedError unless a request brings a token that is good for requests, if one is needed."""
        wanted = [each for each in (self.token, self.change_token) if each is not None]
        if self.token is not None and not any(_brings(request, each) for each in wanted):
            raise DeniedError(401, "expected Authorization: Bearer with the token; got another or none")

    def check_change(self, request: Request) -> None:
        """Raise DeniedError unless a request may change the server."""
        if self.change_token is not None and _brings(request, self.change_token):
            return
        if _is_local(request):
            self.check(request)
            return
        if self.change_token is None:
            raise DeniedError(403, "expected a change from loopback: there is no token for changes from elsewhere")
        raise DeniedError(401, "expected Authorization: Bearer with the token for changes; got another or none")


def _token(path: str | PathLike[str] | None) -> str | None:
    """Return the token in a file."""
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"expected a file with a token at {path}; {error}") from error
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise UserError(f"expected one word of ASCII in {path}, as a token; got something else")
    return token


def _brings(request: Request, token: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _is_local(request: Request) -> bool:
    """Return whether a request comes from a program on this machine: not through a proxy, and not from a page of
    another site in a browser here."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    same = origin is None or urlsplit(origin).netloc == host
    return (
        bool(request.client and is_loopback(request.client.host)) and not forwarded and same and _names_loopback(host)
    )


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)


def is_loopback(host: str) -> bool:
    """Return whether an address, or a name, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
