"""Limits on connections, which the HTTP server itself does not have."""

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
# Seconds in which a client beyond the limit can send its request, to be told to try again.
BUSY_SECONDS = 1.0


class Connection(H11Protocol):
    """A connection that is closed if its client is too slow, or if there are too many clients.

    Args:
        max_connections: Clients served at the same time. As many again are told to try again
            later when they send a request; any further ones are told so at once.
        seconds: Time from the first byte of a request to the end of its answer.
        uvicorn: Arguments of uvicorn's protocol.
    """

    def __init__(self, *, max_connections: int, seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.max_connections, self.seconds = max_connections, seconds
        self.is_excess = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        super().connection_made(transport)
        count = len(self.connections)
        self.is_excess = count > self.max_connections
        if count > 2 * self.max_connections:
            self._answer_busy()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.is_excess:
            if not self.transport.is_closing():
                self._answer_busy()
            return
        if self._timer is None:
            self._start_timer()
        discarding = self.conn.our_state is h11.DONE  # the answer did not need the whole body
        super().data_received(data)
        if discarding and self.conn.our_state is not h11.DONE:
            self._start_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has finished sending, before the connection is closed."""
        waiting = self.cycle is not None and not self.cycle.response_complete
        if waiting and self.conn.their_state is h11.DONE:
            self.cycle.keep_alive = False
            return True
        return False

    def on_response_complete(self) -> None:  # noqa: D102
        super().on_response_complete()
        if self.conn.our_state is h11.IDLE:
            self._stop_timer()  # from here on, uvicorn limits the time
        elif self.conn.our_state is h11.SEND_RESPONSE:  # the client did not wait for the answer
            self._start_timer()

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer is on its way already
            self.transport.close()

    def _answer_busy(self) -> None:
        self.transport.write(BUSY_ANSWER)
        self.transport.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        seconds = BUSY_SECONDS if self.is_excess else self.seconds
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
