"""`ptune serve`: many classifiers over HTTP, from one backbone in memory.

FastAPI and uvicorn do the protocol, the routing and the graceful stop; a `PromptBank` does the
classifying, in one thread that takes whatever requests wait, of any tasks, as the next batch.
Requests and answers have the shape of text-embeddings-inference's `/predict`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import logging.config
import math
import queue
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np

from ptune import __version__
from ptune.adapters.adapter import OLD_WEIGHTS_NAME, TRAINED_STATE_NAME, WEIGHTS_NAME
from ptune.adapters.schema import CONFIG_NAME, INFO_NAME
from ptune.errors import PtuneError
from ptune.inference.bank import PromptBank, TaskInfo
from ptune.inference.classifier import Text, probabilities_of

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi import Path as PathParameter
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from fastapi.staticfiles import StaticFiles
    from fastapi_offline import FastAPIOffline
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        PlatformCollector,
        ProcessCollector,
        generate_latest,
    )
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from pythonjsonlogger.json import JsonFormatter  # noqa: F401 (the logging configuration's)
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.requests import ClientDisconnect
    from starlette.routing import Route
except ImportError as error:
    raise PtuneError(
        f"Serving needs the package {error.name!r}. Install it: pip install 'ptune[serve]'"
    ) from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ptune.serving.app")

WEB = Path(__file__).parent / "web"
# What a task may be called: one part of a path, and the same on every file system.
TASK_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
NAMES = (
    "A task's name has 1 to 128 letters (A to Z), digits, '_', '-' and '.', and does not begin "
    "with '.' or '-'."
)
# Of a waiting client that was refused, seconds.
RETRY_AFTER = "1"
# While it stops, the server goes on to answer for so long that it does, seconds.
FAREWELL = 1.0


@dataclass(frozen=True)
class ServeSettings:
    """How to serve.

    Attributes:
        folder: Its sub-folders with an adapter are the tasks.
        model: The backbone, if not the one that the adapters name.
        dtype: Of the frozen backbone.
        memory_budget: Bytes of adapters kept in memory; ``None``: all of them.
        host: Address to listen on.
        port: Likewise; 0: a free one.
        token: What clients must show; ``None``: nothing, which only loopback allows.
        admin_token: What adding and removing tasks takes; ``None``: nobody does.
        batch_size: Texts a forward pass.
        queue: Texts that may wait for one; more are refused with 429.
        timeout: Seconds a request may take, reading its body included.
        max_body: Bytes of a request's body.
        max_texts: Texts or pairs of a request.
        max_chars: Characters of a text; of a pair, both texts together.
        max_connections: Clients connected at a time.

    Raises:
        PtuneError: A number is out of range; or anyone could use the server.
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

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue", "max_body", "max_texts", "max_chars"):
            if getattr(self, name) < 1:
                raise PtuneError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.timeout > 0:
            raise PtuneError(f"timeout is {self.timeout}; it must be more than 0 seconds.")
        if not 0 <= self.port <= 65_535:
            raise PtuneError(f"port is {self.port}; it must be between 0 and 65535.")
        if self.max_connections < 2:
            raise PtuneError(f"max_connections is {self.max_connections}; it must be at least 2.")
        if self.queue < self.max_texts:
            raise PtuneError(
                f"A request may hold {self.max_texts} texts and only {self.queue} may wait, so it "
                "could never be accepted. Raise --queue or lower --max-texts."
            )
        for name in ("token", "admin_token"):
            token = getattr(self, name)
            if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
                raise PtuneError(f"The {name.replace('_', ' ')} must be ASCII, without spaces.")
        if self.token is None and not _is_loopback(self.host):
            raise PtuneError(
                f"On {self.host} anyone who reaches this machine could use the server. Set a token "
                "(PTUNE_TOKEN, or --token), or listen on 127.0.0.1."
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def place_of(folder: Path, task: str) -> Path:
    """The folder of a task's adapter, which lies in the served folder, links followed.

    Raises:
        PtuneError: The task cannot be called so, or its files lie elsewhere.
    """
    if not TASK_NAME.fullmatch(task):
        raise PtuneError(NAMES)
    root = folder.resolve()
    # The last one says whether it was trained on pairs.
    files = [CONFIG_NAME, WEIGHTS_NAME, OLD_WEIGHTS_NAME, INFO_NAME, TRAINED_STATE_NAME]
    files.append("metrics.json")
    for path in (root / task, *(root / task / name for name in files)):
        if not path.resolve().is_relative_to(root):
            raise PtuneError(
                f"{task}: {path.name} is a link out of the served folder. Put the files themselves "
                "there."
            )
    return root / task


# What is sent and answered. The shapes are those of text-embeddings-inference.

# That a text is not only spaces is said in the schema and checked by `check`, which says it better.
_Text = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
_TextsOfOne = Annotated[list[_Text], Field(min_length=1, max_length=2)]


class PredictRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[
        _Text | _TextsOfOne | Annotated[list[_TextsOfOne], Field(min_length=1)],
        Field(
            description="A text; a pair of texts [a, b]; or a batch [[text], [a, b], …].",
            examples=["where is my parcel?", ["It rains.", "Rain falls."], [["a"], ["b"]]],
        ),
    ]
    raw_scores: Annotated[
        bool, Field(description="Logits in place of probabilities; highest first all the same.")
    ] = False
    truncate: Annotated[
        bool | None,
        Field(description="False: refuse a text that is too long. Otherwise it is cut."),
    ] = None

    def texts(self) -> list[Text]:
        """Every text or pair."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        rows = [self.inputs] if isinstance(self.inputs[0], str) else self.inputs
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list for each text."""
        return not isinstance(self.inputs, str) and not isinstance(self.inputs[0], str)


class LabelScore(BaseModel):
    """A label and its probability; the number itself for regression."""

    label: str
    score: float


class Task(BaseModel):
    """A task that is served."""

    name: str
    labels: list[str]
    problem_type: str
    pairs: Annotated[bool | None, Field(description="Wants pairs of texts; null: not known.")]
    num_virtual_tokens: int
    depth: str


class ErrorBody(BaseModel):
    """What went wrong, in words and in one word."""

    error: str
    error_type: str


UNKNOWN = "There is no such task; GET /tasks lists those there are."
PAIRS = "The task was trained on pairs of texts: inputs is [a, b], or a batch [[a, b], …]."
NO_PAIRS = (
    "The task was trained on single texts, and inputs holds a pair. A batch of two texts is "
    "[[a], [b]]."
)
# In one word what a status means, where nothing more precise was said.
ERROR_TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "media_type",
    422: "validation",
    424: "backend",
    429: "overloaded",
    500: "internal",
    503: "stopping",
}


def refuse(
    status: int, error: str, *, error_type: str | None = None, headers: dict[str, str] | None = None
) -> NoReturn:
    """End the request with an error."""
    body = ErrorBody(error=error, error_type=error_type or ERROR_TYPES[status])
    raise HTTPException(status, body.model_dump(), headers)


_bearer = HTTPBearer(auto_error=False, description="The server's token, if it has one.")
TaskName = Annotated[str, PathParameter(pattern=TASK_NAME.pattern, description=NAMES)]
Shown = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


# The batches.


# What the task is, and a text's logits [num_labels].
Answer = tuple[TaskInfo, np.ndarray]


class _TooLong(Exception):
    """A text that was not to be cut has more tokens than its task reads."""


@dataclass
class _Job:
    requests: list[tuple[str, Text]]
    may_cut: bool
    answers: Future[list[Answer]] = field(default_factory=Future)


class Batcher:
    """A bounded queue, and the one thread that computes.

    While a batch is computed the next one gathers, so that batches are as large as the load is
    high, and a lone request waits for nothing.
    """

    def __init__(self, bank: PromptBank, settings: ServeSettings, metrics: Metrics) -> None:
        self.bank, self.metrics = bank, metrics
        self.batch_size, self.bound = settings.batch_size, settings.queue
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting = 0  # texts
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ptune-batches", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, job: _Job) -> None:
        """Accept a job.

        Raises:
            queue.Full: Too many texts wait.
        """
        self._count(len(job.requests))
        self._queue.put(job)

    def _count(self, texts: int) -> None:
        with self._lock:
            if texts > 0 and self._waiting + texts > self.bound:
                raise queue.Full
            self._waiting += texts
            self.metrics.waiting.set(self._waiting)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs, texts = [job], len(job.requests)
            while texts < self.batch_size and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)  # stop, after this batch
                    break
                jobs.append(more)
                texts += len(more.requests)
            self._count(-texts)
            # A client that gave up, or whose time is over, has cancelled its job.
            self._answer([j for j in jobs if j.answers.set_running_or_notify_cancel()])

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer every job; one that fails disturbs no other."""
        if not jobs:
            return
        try:
            answers = iter(self._compute(jobs))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answers.set_exception(error)
                return
            half = len(jobs) // 2
            self._answer(jobs[:half])
            self._answer(jobs[half:])
        else:
            for job in jobs:
                job.answers.set_result([next(answers) for _ in job.requests])

    def _compute(self, jobs: list[_Job]) -> list[Answer]:
        started = time.perf_counter()
        uncut = [request for job in jobs if not job.may_cut for request in job.requests]
        if excess := max(self.bank.excess(uncut), default=0):
            raise _TooLong(excess)
        requests = [request for job in jobs for request in job.requests]
        answers = list(self.bank.answers(requests, batch_size=self.batch_size))
        self.metrics.batch_texts.observe(len(requests))
        self.metrics.batch_seconds.observe(time.perf_counter() - started)
        return answers


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def of(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            return kind(f"ptune_{name}", text, labels, registry=self.registry, **how)

        self.requests = of(Counter, "requests", "Requests answered.", ("route", "status"))
        self.seconds = of(
            Histogram, "request_seconds", "From the first byte to the answer.", ("route",)
        )
        self.texts = of(Counter, "texts", "Texts classified.", ("task",))
        self.waiting = of(Gauge, "queue_texts", "Texts that wait for a batch.")
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch_texts = of(Histogram, "batch_texts", "Texts in a batch.", buckets=sizes)
        self.batch_seconds = of(Histogram, "batch_seconds", "Computing a batch.")
        self.tasks = of(Gauge, "tasks", "Tasks served.")
        self.refused = of(Gauge, "tasks_refused", "Adapters refused when the server started.")


class _Observed:
    """Counts and logs every request, without its texts; whatever breaks is an answer in JSON."""

    def __init__(self, app: ASGIApp, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self.app, self.metrics, self.stopping = app, metrics, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        except ClientDisconnect:  # before its body was here
            status = 499
        except Exception as error:
            # What an exception says may be a text; where it comes from is not.
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            log.error("failure", extra={"exception": type(error).__name__, "where": where[-8:]})
            if status == 0:
                body = {"error": "The server failed; its log says where.", "error_type": "internal"}
                await JSONResponse(body, 500)(scope, receive, observed)
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        said = scope.get("state", {}).get("said", {})
        client = scope["client"][0] if scope.get("client") else None
        log.info(
            "request",
            extra={"route": route, "method": scope["method"][:16], "status": status}
            | {"seconds": round(seconds, 6), "client": client, **said},
        )


def build_app(bank: PromptBank, settings: ServeSettings) -> FastAPI:
    """The application; `app.state.stopping` makes it refuse new work."""
    metrics = Metrics()
    metrics.tasks.set_function(lambda: len(bank))
    metrics.refused.set(len(bank.refused))
    batcher = Batcher(bank, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.stop)

    app = FastAPIOffline(
        title="ptune",
        version=__version__,
        description="Text classifiers on one frozen language model. "
        "Requests and answers have the shape of text-embeddings-inference's `/predict`.",
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.stopping = False
    app.add_middleware(_Observed, metrics=metrics, stopping=lambda: app.state.stopping)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, AnyHTTPException)
        body: Any = error.detail
        headers = dict(error.headers or {})
        if not isinstance(body, dict):
            body = {
                "error": f"{body}.",
                "error_type": ERROR_TYPES.get(error.status_code, "bad_request"),
            }
        if error.status_code == 405:  # each route knows only its own method
            path = request.scope["path"]
            routes = [r for r in app.routes if isinstance(r, Route) and r.path_regex.match(path)]
            headers["Allow"] = ", ".join(sorted({m for r in routes for m in r.methods or ()}))
        return JSONResponse(body, error.status_code, headers)

    async def misnamed(_: Request, __: Exception) -> Response:
        # Of a request, FastAPI itself checks only the task's name.
        return JSONResponse({"error": NAMES, "error_type": "validation"}, 422)

    app.add_exception_handler(AnyHTTPException, refused)
    app.add_exception_handler(RequestValidationError, misnamed)

    # Who may.

    def shows(shown: HTTPAuthorizationCredentials | None, token: str | None) -> bool:
        return (
            shown is not None
            and token is not None
            and secrets.compare_digest(shown.credentials.encode(), token.encode())
        )

    async def as_client(shown: Shown) -> None:
        allowed = (settings.token, settings.admin_token)
        if not any(shows(shown, token) for token in allowed):
            refuse(
                401,
                "Show the server's token: Authorization: Bearer TOKEN.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def as_admin(shown: Shown) -> None:
        if settings.admin_token is None:
            refuse(403, "Tasks are not added or removed here: the server has no admin token.")
        if not shows(shown, settings.admin_token):
            refuse(
                401,
                "Adding and removing tasks takes the admin token: Authorization: Bearer TOKEN.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def while_open() -> None:
        if app.state.stopping:
            refuse(503, "The server stops. Ask another one.", headers={"Retry-After": RETRY_AFTER})

    client = [] if settings.token is None else [Depends(as_client)]
    admin, working = Depends(as_admin), Depends(while_open)

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": ErrorBody} for status in statuses}

    # Classifying.

    def known(task: str) -> TaskInfo:
        try:
            return bank.task(task)
        except PtuneError:
            refuse(404, UNKNOWN)

    async def read(request: Request) -> PredictRequest:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            refuse(415, "The body must be JSON, with Content-Type: application/json.")
        too_large = f"The body is larger than {settings.max_body:,} bytes."
        # Only digits pass h11.
        if int(request.headers.get("content-length", 0)) > settings.max_body:
            refuse(413, too_large)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > settings.max_body:
                refuse(413, too_large)
        try:
            wanted = PredictRequest.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            if first["type"] == "json_invalid":
                refuse(400, f"{first['msg']}.")
            refuse(422, _what_is_wrong(first))
        check(wanted.texts())
        return wanted

    def check(texts: list[Text]) -> None:
        if len(texts) > settings.max_texts:
            refuse(
                413,
                f"The request holds {len(texts):,} texts; {settings.max_texts:,} are allowed. Send "
                "several requests.",
            )
        for i, text in enumerate(texts, start=1):
            parts = [text] if isinstance(text, str) else text
            if not all(part.strip() for part in parts):
                refuse(422, f"Text {i} is empty.")
            if (size := sum(map(len, parts))) > settings.max_chars:
                refuse(
                    413, f"Text {i} has {size:,} characters; {settings.max_chars:,} are allowed."
                )

    @app.post(
        "/tasks/{task}/predict",
        tags=["predict"],
        dependencies=[*client, working],
        response_model=list[LabelScore] | list[list[LabelScore]],
        responses=errors(400, 401, 404, 408, 413, 415, 422, 424, 429, 500, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": PredictRequest.model_json_schema()}},
            }
        },
    )
    async def predict(task: TaskName, request: Request) -> Response:
        """Labels and their scores, the highest first; for a batch, a list of them for each text."""
        if task not in bank:
            refuse(404, UNKNOWN)
        said: dict[str, Any] = {"task": task}
        request.state.said = said
        deadline = asyncio.get_running_loop().time() + settings.timeout
        try:
            async with asyncio.timeout_at(deadline):
                wanted = await read(request)
        except TimeoutError:
            refuse(
                408,
                f"The body did not arrive within {settings.timeout:g} seconds.",
                headers={"Connection": "close"},
            )
        texts = wanted.texts()
        said["texts"] = len(texts)
        job = _Job([(task, text) for text in texts], may_cut=wanted.truncate is not False)
        try:
            batcher.submit(job)
            async with asyncio.timeout_at(deadline):
                answers = await asyncio.wrap_future(job.answers)
        except queue.Full:
            refuse(
                429,
                f"{settings.queue:,} texts wait already. Try again later.",
                headers={"Retry-After": RETRY_AFTER},
            )
        except TimeoutError:
            refuse(
                503,
                f"There was no answer within {settings.timeout:g} seconds.",
                error_type="timeout",
                headers={"Retry-After": RETRY_AFTER},
            )
        except _TooLong as error:
            refuse(
                413,
                f"A text is {error} tokens longer than the task reads, and truncate is false.",
            )
        except PtuneError as error:
            if task not in bank:  # removed meanwhile
                refuse(404, UNKNOWN)
            refuse(422, str(error))
        pairs = answers[0][0].pairs
        if pairs is not None and any(isinstance(text, str) is pairs for text in texts):
            refuse(422, PAIRS if pairs else NO_PAIRS)
        metrics.texts.labels(task).inc(len(texts))
        scores = [_scores(*answer, raw=wanted.raw_scores) for answer in answers]
        return JSONResponse(scores if wanted.is_batch else scores[0])

    # The tasks.

    @app.get("/tasks", tags=["tasks"], dependencies=client, responses=errors(401))
    def tasks() -> list[Task]:
        """Every task."""
        found = []
        for name in bank:
            try:
                found.append(_task(bank.task(name)))
            except PtuneError:  # removed meanwhile
                continue
        return sorted(found, key=lambda task: task.name)

    @app.get("/tasks/{task}", tags=["tasks"], dependencies=client, responses=errors(401, 404))
    def task(task: TaskName) -> Task:
        """One task."""
        return _task(known(task))

    @app.put(
        "/tasks/{task}",
        tags=["tasks"],
        dependencies=[admin, working],
        responses={201: {"model": Task}, **errors(401, 403, 404, 422, 503)},
    )
    def put_task(task: TaskName, response: Response) -> Task:
        """Add the adapter in the sub-folder of that name, or read it anew."""
        try:
            place = place_of(settings.folder, task)
            if not place.is_dir():
                refuse(404, "The served folder has no sub-folder of that name.")
            is_new = task not in bank
            bank.add(task, place, replace=True)
            info = bank.task(task)
        except PtuneError as error:
            refuse(422, str(error))
        response.status_code = 201 if is_new else 200
        log.info("task added" if is_new else "task replaced", extra={"task": task})
        return _task(info)

    @app.delete(
        "/tasks/{task}",
        tags=["tasks"],
        dependencies=[admin, working],
        status_code=204,
        responses=errors(401, 403, 404, 503),
    )
    def delete_task(task: TaskName) -> None:
        """Serve a task no longer. Its files stay."""
        known(task)
        try:
            bank.remove(task)
        except PtuneError:  # somebody else was faster
            known(task)
        log.info("task removed", extra={"task": task})

    # For whoever runs the server.

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready", tags=["server"], dependencies=[working], responses=errors(503))
    async def ready() -> dict[str, str]:
        """The server takes requests."""
        return {"status": "ready"}

    @app.get(
        "/metrics",
        tags=["server"],
        dependencies=client,
        response_class=PlainTextResponse,
        responses=errors(401),
    )
    def prometheus() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(
            WEB / "index.html",
            headers={
                "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    app.mount("/web", StaticFiles(directory=WEB))
    return app


def _what_is_wrong(error: Any) -> str:
    """What is wrong with a request, without what it holds."""
    place = error["loc"][0] if error["loc"] else None
    if place == "inputs" and error["type"] != "missing":
        return (
            "inputs must be a text, a pair of texts [a, b], or a batch [[text], [a, b], …] whose "
            "rows have one or two texts. A flat list is one text or one pair."
        )
    if place is None:
        return "The body must be an object with the field inputs."
    if error["type"] == "extra_forbidden":
        return f"There is no field {str(place)[:80]!r}; there are inputs, raw_scores and truncate."
    return f"{str(place)[:80]}: {error['msg']}."


def _scores(task: TaskInfo, logits: np.ndarray, *, raw: bool) -> list[dict[str, Any]]:
    plain = raw or task.problem_type == "regression"
    scores = logits if plain else probabilities_of(logits[None], task.problem_type)[0]
    if not np.isfinite(scores).all():
        refuse(424, "The task's scores are no numbers; its adapter is damaged.")
    pairs = zip(task.labels, scores.tolist(), strict=True)
    return [{"label": n, "score": s} for n, s in sorted(pairs, key=lambda pair: -pair[1])]


def _task(info: TaskInfo) -> Task:
    return Task.model_validate(info, from_attributes=True)


# The process.


class _Server(uvicorn.Server):
    """Says when it listens, and farewell before it closes."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], None]) -> None:
        super().__init__(config)
        self.listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.stopping = True  # type: ignore[union-attr]
        log.info("stopping")
        # Every answer now closes its connection, so that no request is lost on its way to a
        # connection that is being closed.
        await asyncio.sleep(FAREWELL)
        await super().shutdown(sockets)
        log.info("stopped")


def serve(settings: ServeSettings, started: Callable[[str, int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted.

    Args:
        settings: How.
        started: Called with the address and the number of tasks once the server listens.

    Raises:
        PtuneError: The folder holds no task that can be served, or the address is taken.
    """
    listener = _bind(settings.host, settings.port)
    with listener, _exits_cleanly():
        bank = load_bank(settings)
        _log_as_json()
        for name, reason in bank.refused.items():
            log.warning("task refused", extra={"task": name, "reason": reason})
        config = uvicorn.Config(
            build_app(bank, settings),
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=math.ceil(settings.timeout) + 5,
            h11_max_incomplete_event_size=32_768,
        )
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def listens() -> None:
            log.info("serving", extra={"url": url, "tasks": len(bank)})
            if started is not None:
                started(url, len(bank))

        _Server(config, listens).run(sockets=[listener])


def load_bank(settings: ServeSettings) -> PromptBank:
    """The tasks of the served folder; `refused` says which ones not, and why.

    Raises:
        PtuneError: There is not one.
    """
    bank = PromptBank.from_folder(
        settings.folder,
        model=settings.model,
        dtype=settings.dtype,
        memory_budget=settings.memory_budget,
    )
    for name in list(bank):
        try:
            place_of(settings.folder, name)
        except PtuneError as error:
            bank.remove(name)
            bank.refused[name] = str(error)
    return bank


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; nobody is let in before the tasks are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise PtuneError(
            f"Cannot listen on {host}, port {port}: {error}. Name another --host or --port."
        ) from error
    return listener


@contextmanager
def _exits_cleanly() -> Iterator[None]:
    """SIGTERM and SIGINT end the process with exit code 0: uvicorn raises them again at the end."""
    signals = (signal.SIGTERM, signal.SIGINT)
    former = {s: signal.signal(s, lambda *_: sys.exit(0)) for s in signals}
    try:
        yield
    finally:
        for s, handler in former.items():
            signal.signal(s, handler)


def _log_as_json() -> None:
    """A JSON object a line on standard error."""
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
