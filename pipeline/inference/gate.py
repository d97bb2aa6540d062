"""Which requests are answered at all, as an ASGI middleware; and errors as JSON."""

import base64
import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from pipeline.core.local_port import HOST, host_name

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_REQUESTS = 256  # answered at the same time
# The first is for programs, the second makes a browser ask for the token, as the password.
CHALLENGES = 'Bearer, Basic realm="photos"'


def problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error: {"error": text}."""
    return JSONResponse({"error": text}, status, headers)


class Gate:
    """Refuses requests for other hosts, without the token (if there is one), or if too many are being answered.

    A page of another site could otherwise use a browser on this computer to send photos, or, by a name that it has
    resolve to this computer, also to read the answers. Once `is_stopping()`, each answer closes its connection.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None, is_stopping: Callable[[], bool]) -> None:
        self._app, self._host, self._token, self._is_stopping = app, host, token, is_stopping
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_stopping():
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        app = self._refusal(Headers(scope=scope), scope["method"]) or self._app
        self._running += 1
        try:
            await app(scope, receive, send_and_close)
        finally:
            self._running -= 1

    def _refusal(self, headers: Headers, method: str) -> JSONResponse | None:
        host = host_name(headers.get("host", ""))
        if not is_own(host, self._host):
            own = f"{HOST} or localhost" if self._host == HOST else "an address or the name of this computer"
            return problem(400, f"the request is for host {host!r}; expected {own}")
        if self._token and not secrets.compare_digest(token_in(headers), self._token.encode()):
            text = "the token is missing or wrong; expected the header `Authorization: Bearer TOKEN`"
            return problem(401, text, {"WWW-Authenticate": CHALLENGES})
        if method == "POST" and is_from_another_site(headers):
            return problem(403, "the request comes from another site's page; only this server's own page may send one")
        if self._running >= MOST_REQUESTS:
            return problem(503, f"{MOST_REQUESTS} requests are being answered; try again", {"Retry-After": "1"})
        return None


def is_from_another_site(headers: Headers) -> bool:
    """Whether a browser sent the request for the page of another site.

    By Origin, too, because browsers send Sec-Fetch-Site only to https and to their own computer.
    """
    origin = headers.get("origin")
    try:
        is_foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # it is not a valid URL
        is_foreign = True
    return is_foreign or headers.get("sec-fetch-site") == "cross-site"


def is_own(name: str, host: str) -> bool:
    """Whether a request for `name` is meant for this server, which listens on `host`.

    If other computers may reach it, they may use its addresses and its name. An address is harmless: only a name can be
    made to resolve to a computer that is not its owner's.
    """
    if name in (host.lower(), "localhost"):
        return True
    return host != HOST and (name == socket.gethostname().lower() or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def token_in(headers: Headers) -> bytes:
    """The token of `Authorization: Bearer TOKEN`, or the password of `Basic`, which browsers send; else empty."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).partition(b":")[2]
        except ValueError:  # not base64, or not even ASCII
            return b""
    return b""
