"""Settings of the server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from ptune.errors import PtuneError
from ptune.training.declaration import check_settings, documented, setting, settings_of
from ptune.training.settings import MODEL, Dtype, TrainSettings

SERVER, LIMITS = "Server", "Limits"


@documented
@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server.

    Attributes:
        folder: Folder. Each subfolder with an adapter is a task.
        {settings}

    Raises:
        PtuneError: A value is out of range, or the server would be open to anyone.
    """

    folder: Path
    model: str | None = setting(
        None, "Backbone.", MODEL, metavar="MODEL", unset="the one that the adapters name"
    )
    allow_other_backbone: bool = setting(
        False, "Accept a backbone with other weights than the adapters were trained on.", MODEL
    )
    dtype: Dtype = setting("auto", settings_of(TrainSettings)["dtype"].help, MODEL)
    host: str = setting(
        "127.0.0.1", "Address to listen on. A public one requires a token.", SERVER,
        metavar="ADDRESS",
    )  # fmt: skip
    port: int = setting(
        8080, "Port to listen on. 0: any free one.", SERVER, at_least=0, at_most=65_535
    )
    token: str | None = setting(
        None, "Bearer token that clients must send.", SERVER, envvar="PTUNE_TOKEN"
    )
    admin_token: str | None = setting(
        None,
        "Bearer token for adding and removing tasks. Without one, nobody can.",
        SERVER,
        envvar="PTUNE_ADMIN_TOKEN",
    )
    harmless: list[str] | None = setting(
        None,
        "Label that does not flag a text in /v1/moderations. Can be repeated.",
        SERVER,
        metavar="LABEL",
        unset="every label flags",
    )
    batch_size: int = setting(64, "Texts of 128 tokens per forward pass.", LIMITS, at_least=1)
    queue: int = setting(1024, "Texts that may wait. More get status 429.", LIMITS, at_least=1)
    timeout: float = setting(
        30.0, "Seconds that a request may take.", LIMITS, above=0, metavar="SECONDS"
    )
    max_body: int = setting(1_000_000, "Bytes per request.", LIMITS, at_least=1)
    max_texts: int = setting(64, "Texts or pairs per request.", LIMITS, at_least=1)
    max_chars: int = setting(20_000, "Characters per text or pair.", LIMITS, at_least=1)
    max_connections: int = setting(
        1024, "Clients connected at a time. More get status 503.", LIMITS, at_least=1
    )
    memory: int | None = setting(
        None,
        "MB of adapters in memory. The others wait on disk.",
        LIMITS,
        at_least=0,
        metavar="MB",
        unset="no limit",
    )

    def __post_init__(self) -> None:
        check_settings(self)
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


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
