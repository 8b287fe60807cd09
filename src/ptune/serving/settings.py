"""Settings of the server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ptune.errors import PtuneError
from ptune.serving.access import is_loopback


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server.

    Attributes:
        folder: Folder whose subfolders contain adapters. Each of them is a task.
        model: The backbone, if it differs from the one named in the adapters.
        dtype: Number format of the backbone.
        memory_budget: Bytes of adapters kept in memory. ``None``: all of them.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free port.
        token: Token that clients must send. ``None``: none, which only loopback allows.
        admin_token: Token for adding and removing tasks. ``None``: not allowed.
        batch_size: Texts per forward pass.
        queue: Texts that may wait. Further requests get status 429.
        timeout: Seconds a request may take, including the time to receive it.
        max_body: Bytes of a request's body.
        max_texts: Texts or pairs per request.
        max_chars: Characters per text or pair.
        max_connections: Clients connected at the same time. Further clients get status 503.
        harmless: Labels that do not flag a text in `/v1/moderations`.

    Raises:
        PtuneError: A number is out of range, or the server would be open to anyone.
    """

    folder: Path
    model: str | None = None
    dtype: str = "auto"
    memory_budget: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    batch_size: int = 64
    queue: int = 1024
    timeout: float = 30.0
    max_body: int = 1_000_000
    max_texts: int = 64
    max_chars: int = 20_000
    max_connections: int = 1024
    harmless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("batch_size", "queue", "max_body", "max_texts", "max_chars", "max_connections")
        for name in counts:
            if getattr(self, name) < 1:
                raise PtuneError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.timeout > 0:
            raise PtuneError(f"timeout is {self.timeout}; it must be more than 0 seconds.")
        if not 0 <= self.port <= 65_535:
            raise PtuneError(f"port is {self.port}; it must be between 0 and 65535.")
        if self.queue < self.max_texts:
            raise PtuneError(
                f"A request may contain {self.max_texts} texts but only {self.queue} may wait, so "
                "such a request could never be accepted. Raise --queue or lower --max-texts."
            )
        for name in ("token", "admin_token"):
            token = getattr(self, name)
            if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
                raise PtuneError(f"The {name.replace('_', ' ')} must be ASCII, without spaces.")
        if self.token is None and not is_loopback(self.host):
            raise PtuneError(
                f"On {self.host}, anyone who can reach this machine could use the server. Set a "
                "token (PTUNE_TOKEN, or --token), or listen on 127.0.0.1."
            )
