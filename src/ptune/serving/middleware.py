"""What happens to every request before and after its route."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from ptune.serving.access import is_local_host
from ptune.serving.metrics import Metrics
from ptune.serving.schemas import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

FOREIGN_HOST = (
    "The Host header names another machine, and the server has no token. Use an address such as "
    "http://127.0.0.1, or start the server with a token (PTUNE_TOKEN)."
)
TWO_LENGTHS = "The request has both a Content-Length and a Transfer-Encoding header."


class Guard:
    """Refuses requests that a browser or a proxy may have been tricked into sending.

    Args:
        app: The application.
        local_only: Refuse a Host header that does not name this machine. A web page that makes its
            own name point to 127.0.0.1 (DNS rebinding) could otherwise use a server without a
            token.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool) -> None:
        self.app, self.local_only = app, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            host = headers.get(b"host", b"localhost").decode("latin-1")
            if b"content-length" in headers and b"transfer-encoding" in headers:
                # A proxy may read the body's length differently (request smuggling).
                await _refuse(400, TWO_LENGTHS)(scope, receive, send)
                return
            if self.local_only and not is_local_host(host):
                await _refuse(403, FOREIGN_HOST)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _refuse(status: int, error: str) -> JSONResponse:
    return JSONResponse(error_body(status, error), status, {"Connection": "close"})


def failure() -> JSONResponse:
    """The answer to a request that raised an exception."""
    return JSONResponse(error_body(500, "The server failed. See its log."), 500)


class RequestLog:
    """Counts and logs every request, without its texts. Exceptions become a JSON answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self.app, self.metrics, self.stopping = app, metrics, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.stopping():
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except ClientDisconnect:  # before the body was complete
            status = 499
        except Exception as error:
            # The message of an exception may quote a text, so only its place is logged.
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            log.error("failure", extra={"exception": type(error).__name__, "where": where[-8:]})
            if status == 0:
                await failure()(scope, receive, observed)
        self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        record = {
            "route": route,
            "method": scope["method"][:16],
            "status": status,
            "seconds": round(seconds, 6),
            "client": scope["client"][0] if scope.get("client") else None,
        }
        log.info("request", extra=record | scope.get("state", {}).get("logged", {}))
