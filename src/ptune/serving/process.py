"""The server process: loading, binding, logging and signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.config
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from ptune.errors import PtuneError, missing_package
from ptune.inference.bank import PromptBank
from ptune.serving.access import task_folder
from ptune.serving.settings import ServeSettings

# The only place that notices a missing extra: everything else is imported from here.
try:
    import pythonjsonlogger.json  # noqa: F401 (used by the logging configuration)
    import uvicorn

    from ptune.serving.app import build_app
    from ptune.serving.connection import IDLE_SECONDS, Connection
except ImportError as error:
    raise missing_package(error.name, "serve") from error

log = logging.getLogger(__name__)

# Clients beyond the limit stay connected for a moment, to be told to try again later.
OPEN_FILES = 32_768
# Seconds to keep answering after SIGTERM before the port closes.
GOODBYE_SECONDS = 1.0


def serve(settings: ServeSettings, started: Callable[[str, int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that were accepted.

    Args:
        settings: Settings of the server.
        started: Called with the address and the number of tasks once the server listens.

    Raises:
        PtuneError: No task in the folder can be served, or the address is in use.
    """
    _allow_open_files()
    listener = _bind(settings.host, settings.port)
    with listener, _exits_cleanly():
        bank = load_bank(settings)
        _log_as_json()
        for name, reason in bank.refused.items():
            log.warning("task refused", extra={"task": name, "reason": reason})
        config = uvicorn.Config(
            build_app(bank, settings),
            http=partial(  # type: ignore[arg-type]
                Connection,
                max_connections=settings.max_connections,
                seconds=2 * settings.timeout + 1,
            ),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(IDLE_SECONDS),
            timeout_graceful_shutdown=math.ceil(settings.timeout) + 5,
            h11_max_incomplete_event_size=32_768,
        )
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def listens() -> None:
            log.info("serving", extra={"url": url, "tasks": len(bank)})
            if started is not None:
                started(url, len(bank))

        # What is loaded stays. Requests should not have to search it for garbage.
        gc.collect()
        gc.freeze()
        _Server(config, listens).run(sockets=[listener])


def load_bank(settings: ServeSettings) -> PromptBank:
    """Load the tasks of the served folder. `refused` lists those that cannot be served, and why.

    Raises:
        PtuneError: No task can be served, and none can be added.
    """
    bank = PromptBank.from_folder(
        settings.folder,
        model=settings.model,
        dtype=settings.dtype,
        allow_other_backbone=settings.allow_other_backbone,
        memory_budget=None if settings.memory is None else settings.memory * 1_000_000,
    )
    for name in list(bank):
        try:
            task_folder(settings.folder, name)
        except PtuneError as error:
            bank.remove(name)
            bank.refused[name] = str(error)
    if not len(bank) and settings.admin_token is None:  # nobody could add a task
        reasons = " ".join(list(bank.refused.values())[:3])
        raise PtuneError(f"No task in {settings.folder} can be served. {reasons}".rstrip())
    return bank


class _Server(uvicorn.Server):
    """Reports when it listens, and keeps answering for a moment before it closes."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], None]) -> None:
        super().__init__(config)
        self.listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.stopping = True  # type: ignore[union-attr]
        log.info("stopping")
        # From now on every answer closes its connection, so that no request is lost on its way to
        # a connection that is being closed.
        await asyncio.sleep(GOODBYE_SECONDS)
        await super().shutdown(sockets)
        log.info("stopped")


def _bind(host: str, port: int) -> socket.socket:
    """Bind a socket. Clients cannot connect until the tasks are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise PtuneError(
            f"Cannot listen on {host}, port {port}: {error}. Choose another --host or --port."
        ) from error
    return listener


def _allow_open_files() -> None:
    """Raise the number of files and connections that may be open, if the system allows it."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def _exits_cleanly() -> Iterator[None]:
    """Exit with code 0 on SIGTERM and SIGINT, which uvicorn raises again when it has stopped."""
    signals = (signal.SIGTERM, signal.SIGINT)
    former = {s: signal.signal(s, lambda *_: sys.exit(0)) for s in signals}
    try:
        yield
    finally:
        for s, handler in former.items():
            signal.signal(s, handler)


def _log_as_json() -> None:
    """Log one JSON object per line to standard error."""
    formatter = {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "format": "%(levelname)s %(name)s %(message)s",
        "rename_fields": {"levelname": "level", "name": "logger"},
        "timestamp": "time",
        "json_ensure_ascii": False,
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": formatter},
            "handlers": {"json": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": "WARNING", "handlers": ["json"]},
            "loggers": {"ptune": {"level": "INFO"}, "uvicorn": {"level": "WARNING"}},
        }
    )
    logging.captureWarnings(True)
