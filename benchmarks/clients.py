"""Clients of a server, in a process of their own that imports nothing large.

    python benchmarks/clients.py 8080 64 1 2048 1 < texts.json

The arguments are the port, clients, texts per request, texts and tasks; standard input holds a list
of texts. The tasks are called task0, task1 and so on. `benchmarks/serve_speed.py` uses it.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any


class Client(asyncio.Protocol):
    """A connection that sends one request after another, as long as there are any."""

    def __init__(self, requests: list[bytes], seconds: list[float], done: asyncio.Future[None]):
        self.requests, self.seconds, self.done = requests, seconds, done
        self.received, self.expected = bytearray(), -1

    def connection_made(self, transport: Any) -> None:
        """Start."""
        self.transport = transport
        self._next()

    def _next(self) -> None:
        if not self.requests:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self.started = time.perf_counter()
        self.transport.write(self.requests.pop())

    def data_received(self, data: bytes) -> None:
        """Read an answer."""
        self.received += data
        if self.expected < 0 and (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.received[:end]).lower()
            if not head.startswith(b"http/1.1 200"):
                self.done.set_exception(RuntimeError(bytes(self.received).decode()))
                self.transport.close()
                return
            size = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.expected = end + 4 + int(size)
        if 0 <= self.expected <= len(self.received):
            self.seconds.append(time.perf_counter() - self.started)
            self.received, self.expected = bytearray(), -1
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report a connection that the server closed."""
        if not self.done.done():
            self.done.set_exception(exc or RuntimeError("The server closed a connection."))


def ask(
    port: int, clients: int, size: int, count: int, tasks: int, texts: list[str]
) -> dict[str, Any]:
    """Send `count` texts in requests of `size`, and time them."""
    rng, requests = random.Random(0), []
    for _ in range(count // size):
        chosen = [rng.choice(texts) for _ in range(size)]
        body = json.dumps({"inputs": chosen[0] if size == 1 else chosen}).encode()
        path = f"/tasks/task{rng.randrange(tasks)}/predict"
        requests.append(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    seconds: list[float] = []

    async def all_clients() -> None:
        loop = asyncio.get_running_loop()
        done = [loop.create_future() for _ in range(clients)]
        for future in done:
            await loop.create_connection(
                lambda future=future: Client(requests, seconds, future), "127.0.0.1", port
            )
        await asyncio.gather(*done)

    cpu, started = time.process_time(), time.perf_counter()
    asyncio.run(all_clients())
    took = time.perf_counter() - started
    seconds.sort()
    return {
        "texts": len(seconds) * size,
        "seconds": took,
        "client_cpu": time.process_time() - cpu,
        "p50_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * seconds[int(0.99 * len(seconds))],
    }


if __name__ == "__main__":
    print(json.dumps(ask(*map(int, sys.argv[1:]), texts=json.load(sys.stdin))))
