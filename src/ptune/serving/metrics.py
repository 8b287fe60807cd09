"""Prometheus metrics, and the middleware that counts and logs requests."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class Metrics:
    """The numbers on `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def add(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            return kind(f"ptune_{name}", text, labels, registry=self.registry, **how)

        self.requests = add(Counter, "requests", "Requests answered.", ("route", "status"))
        self.seconds = add(
            Histogram, "request_seconds", "From the first byte to the answer.", ("route",)
        )
        self.texts = add(Counter, "texts", "Texts classified.", ("task",))
        self.waiting = add(Gauge, "queue_texts", "Texts waiting for a batch.")
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch_texts = add(Histogram, "batch_texts", "Texts per batch.", buckets=sizes)
        self.batch_seconds = add(Histogram, "batch_seconds", "Seconds per batch.")
        self.tasks = add(Gauge, "tasks", "Tasks served.")
        self.refused = add(Gauge, "tasks_refused", "Adapters refused when the server started.")


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
                body = {"error": "The server failed. See its log.", "error_type": "internal"}
                await JSONResponse(body, 500)(scope, receive, observed)
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
