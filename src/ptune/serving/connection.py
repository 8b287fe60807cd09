"""Limits on connections, which uvicorn itself does not have."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

BUSY = b'{"error":"Too many clients are connected. Try again later.","error_type":"overloaded"}'
BUSY_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
)
# Seconds that a client beyond the limit has to read its answer.
BUSY_SECONDS = 1.0
# Seconds that a connection may be idle between two requests.
IDLE_SECONDS = 65.0


class _Transport:
    """A transport that stays open after an answer until its client has sent everything.

    Closed at once, what the client still sends would destroy the answer.
    """

    def __init__(self, transport: Any, conn: h11.Connection) -> None:
        self.transport, self.conn, self.lingers = transport, conn, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def is_closing(self) -> bool:
        """True if nothing is to be sent any more."""
        return self.lingers or self.transport.is_closing()

    def close(self) -> None:
        """Close it, the second time or if the client has sent everything, at once."""
        if self.lingers or self.conn.their_state is not h11.SEND_BODY:
            self.transport.close()
        else:
            self.lingers = True
            self.transport.resume_reading()
            self.transport.write_eof()


class Connection(H11Protocol):
    """A connection that is closed if its client is too slow, or if there are too many clients.

    Args:
        max_connections: Clients served at the same time. Further ones are told to try again.
        seconds: Time from the first byte of a request to the last byte of its answer.
        uvicorn: Arguments of uvicorn's protocol.
    """

    transport: Any

    def __init__(self, *, max_connections: int, seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.max_connections, self.seconds = max_connections, seconds
        self.is_excess = False
        self._is_idle = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        transport = _Transport(transport, self.conn)
        super().connection_made(transport)
        self.is_excess = len(self.connections) > self.max_connections
        self._limit(BUSY_SECONDS if self.is_excess else self.seconds)
        if self.is_excess:
            self.connections.discard(self)
            transport.write(BUSY_ANSWER)
            # Closed at once, the client's request would destroy the answer.
            transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.is_excess or self.transport.lingers:
            return
        if self._is_idle:
            self._is_idle = False
            self._limit(self.seconds)
        discarding = self.conn.our_state is h11.DONE  # the answer did not need the whole body
        super().data_received(data)
        if discarding and self.conn.our_state is not h11.DONE:
            self._next_request()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has finished sending, before the connection is closed."""
        waiting = self.cycle is not None and not self.cycle.response_complete
        if waiting and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE):
            self.cycle.keep_alive = False
            return True
        return False

    def on_response_complete(self) -> None:  # noqa: D102
        super().on_response_complete()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._next_request()

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.cycle is not None:
                self.cycle.disconnected = True  # the application's own answer is not sent
            super().send_400_response(msg)
        else:  # a response is already being sent
            self.transport.close()

    def _next_request(self) -> None:
        """Restart the timer after a response."""
        self._is_idle = self.conn.our_state is h11.IDLE  # else the next request was there already
        is_read = not self.transport.get_write_buffer_size()
        self._limit(IDLE_SECONDS if self._is_idle and is_read else self.seconds)

    def _limit(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)
