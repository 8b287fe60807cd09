"""The web application: routes, and the form of every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from scipy import special
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ptune import __version__
from ptune.errors import PtuneError
from ptune.inference.bank import Answer, PromptBank
from ptune.inference.tasks import TaskInfo
from ptune.serving.access import NAME_RULE, TASK_NAME, same_token, task_folder
from ptune.serving.batching import Batcher, Deliveries, Job, TooLong
from ptune.serving.metrics import Metrics
from ptune.serving.middleware import Guard, RequestLog, failure
from ptune.serving.schemas import (
    ERROR_TYPES,
    MIXED,
    NO_PAIRS,
    PAIRS,
    RETRY_AFTER,
    LabelScore,
    ManyTasksRequest,
    Moderation,
    ModerationRequest,
    PredictRequest,
    Task,
    describe_invalid,
    error_body,
    error_responses,
    refuse,
)
from ptune.serving.settings import ServeSettings
from ptune.texts import Text

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

PREDICT = "/tasks/{task}/predict"
_DIRECT = re.compile(f"/tasks/({TASK_NAME.pattern[1:-1]})/predict")
_DIRECT_ROUTE = SimpleNamespace(path=PREDICT)  # for the log
Asked = TypeVar("Asked", PredictRequest, ManyTasksRequest, ModerationRequest)
Scores = list[LabelScore]
ByTask = dict[str, Scores]

_bearer = HTTPBearer(auto_error=False, description="The server's token, if it has one.")
TaskName = Annotated[str, PathParameter(pattern=TASK_NAME.pattern, description=NAME_RULE)]
Sent = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def build_app(bank: PromptBank, settings: ServeSettings) -> FastAPI:
    """The application. Setting `app.state.stopping` makes it refuse new work."""
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
        description="Text classifiers that share one frozen language model. Clients of "
        "text-embeddings-inference, of the Hugging Face inference API and of OpenAI's moderation "
        "API can use them.",
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.stopping = False
    routes = Routes(bank, settings, batcher)
    app.add_exception_handler(HTTPException, _error_answer)
    app.add_exception_handler(RequestValidationError, _name_answer)
    app.add_exception_handler(Exception, _failure_answer)
    routes.add_to(app)
    app.mount("/web", StaticFiles(directory=WEB))
    # Around FastAPI's own middleware, which most requests need not pass.
    direct = Direct(app.build_middleware_stack(), routes)
    guard = Guard(direct, local_only=settings.token is None)
    app.middleware_stack = RequestLog(guard, metrics, stopping=lambda: app.state.stopping)
    return app


async def _error_answer(request: Request, error: Exception) -> Response:
    """Every error as JSON, with a sentence and a word for programs."""
    assert isinstance(error, HTTPException)
    body: Any = error.detail
    headers = dict(error.headers or {})
    if not isinstance(body, dict):
        sentence = f"{body}."
        if error.status_code == 404:
            sentence = (
                "There is no such path. POST /tasks/TASK/predict classifies; GET /docs lists all."
            )
        elif error.status_code == 405:  # each route knows only its own method
            path = request.scope["path"]
            routes = [
                r for r in request.app.routes if isinstance(r, Route) and r.path_regex.match(path)
            ]
            methods = {m for r in routes for m in r.methods or ()}
            methods |= {"HEAD"} if "GET" in methods else set()
            headers["Allow"] = ", ".join(sorted(methods))
            sentence = f"This path does not take {request.method}. Use {headers['Allow']}."
        error_type = ERROR_TYPES.get(error.status_code, "bad_request")
        body = error_body(error.status_code, sentence, error_type)
    if request.url.path.startswith("/v1/"):  # OpenAI's form
        message, kind = body["error"], body["error_type"]
        body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, error.status_code, headers)


async def _failure_answer(_: Request, __: Exception) -> Response:
    return failure()


async def _name_answer(_: Request, __: Exception) -> Response:
    """The only part of a request that FastAPI itself checks is the task's name."""
    return JSONResponse(error_body(422, NAME_RULE), 422)


def _refuse_task(task: str) -> NoReturn:
    refuse(404, f"There is no task {task[:128]!r}. GET /tasks lists all tasks.")


class Direct:
    """Takes most requests past FastAPI's routing, which needs more time than the rest of an answer.

    FastAPI describes the route, and answers everything else on its path.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http" and scope["method"] == "HEAD":
            as_get = {**scope, "method": "GET"}  # uvicorn leaves out the body
            await self.app(as_get, receive, send)
            scope["route"] = as_get.get("route")  # for the log
            return
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        found = _DIRECT.fullmatch(scope["path"]) if is_post else None
        if found is None:
            await self.app(scope, receive, send)
            return
        request, scope["route"] = Request(scope, receive), _DIRECT_ROUTE
        try:
            response = await self.routes.direct(found[1], request)
        except HTTPException as error:
            response = await _error_answer(request, error)
        await response(scope, receive, send)


class Routes:
    """What the server answers on each route."""

    def __init__(self, bank: PromptBank, settings: ServeSettings, batcher: Batcher) -> None:
        self.bank, self.settings, self.batcher = bank, settings, batcher
        self.deliveries = Deliveries()

    def add_to(self, app: FastAPI) -> None:
        """Add all routes, with who may use them and the errors that they return."""
        add, errors = app.add_api_route, error_responses
        client = [] if self.settings.token is None else [Depends(self._check_client)]
        admin = [Depends(self._check_admin), Depends(_check_open)]
        predict: dict[str, Any] = {
            "methods": ["POST"],
            "tags": ["predict"],
            "dependencies": [*client, Depends(_check_open)],
            "responses": errors(400, 401, 404, 408, 413, 415, 422, 424, 429, 500, 503),
        }
        classifying: list[tuple[str, Any, type[BaseModel], Any]] = [
            (PREDICT, self.predict, PredictRequest, Scores | list[Scores]),
            ("/predict", self.predict_all, ManyTasksRequest, ByTask | list[ByTask]),
            ("/v1/moderations", self.moderate, ModerationRequest, Moderation),
        ]
        for path, answer, asked, found in classifying:
            add(path, answer, response_model=found, openapi_extra=_json_body(asked), **predict)
        tasks: dict[str, Any] = {"tags": ["tasks"]}
        add("/tasks", self.list_tasks, dependencies=client, responses=errors(401), **tasks)
        tasks["path"] = "/tasks/{task}"
        add(endpoint=self.get_task, dependencies=client, responses=errors(401, 404), **tasks)
        added = {201: {"model": Task}, **errors(401, 403, 404, 422, 503)}
        add(endpoint=self.put_task, methods=["PUT"], dependencies=admin, responses=added, **tasks)
        add(
            endpoint=self.delete_task,
            methods=["DELETE"],
            dependencies=admin,
            status_code=204,
            responses=errors(401, 403, 404, 503),
            **tasks,
        )
        server: dict[str, Any] = {"tags": ["server"]}
        add("/health", self.health, **server)
        add(
            "/ready",
            self.ready,
            dependencies=[Depends(_check_open)],
            responses=errors(503),
            **server,
        )
        add(
            "/metrics",
            self.metrics,
            dependencies=client,
            response_class=PlainTextResponse,
            responses=errors(401),
            **server,
        )
        add("/", self.page, include_in_schema=False)

    # Who may use a route.

    async def _check_client(self, sent: Sent) -> None:
        tokens = (self.settings.token, self.settings.admin_token)
        if sent is None or not any(same_token(sent.credentials, token) for token in tokens):
            _refuse_token("Send the server's token: Authorization: Bearer TOKEN.")

    async def _check_admin(self, sent: Sent) -> None:
        if self.settings.admin_token is None:
            refuse(403, "The server has no admin token, so tasks cannot be added or removed.")
        if sent is None or not same_token(sent.credentials, self.settings.admin_token):
            _refuse_token(
                "Adding and removing tasks needs the admin token: Authorization: Bearer TOKEN."
            )

    # Classifying.

    async def direct(self, task: str, request: Request) -> Response:
        """`predict`, with its checks."""
        if self.settings.token is not None:
            await self._check_client(await _bearer(request))
        await _check_open(request)
        return await self.predict(task, request)

    async def predict(self, task: TaskName, request: Request) -> Response:
        """Return labels with their scores, highest first.

        The answer for one text is a list of labels. With `parameters`, and for several texts, it
        is a list of such lists.
        """
        deadline = self._deadline()
        info = self._known(task)
        request.state.logged = {"task": task}
        asked = _parse(PredictRequest, await self._read(request, deadline))
        function, texts = asked.function, asked.texts(info.pairs)
        job = _job([info], texts, asked)
        answers = await self._answers([info], job, request, deadline)
        scores = [_ranked(answer, function)[: asked.top_k] for answer in answers]
        body = scores[0] if asked.is_flat(info.pairs) else scores
        return JSONResponse(body, headers=_truncated(answers))

    async def predict_all(self, request: Request) -> Response:
        """Return labels with their scores by task, for several tasks.

        Each text is read once for all tasks that are readers. The answer for one text is an object
        with an entry for each task; for several texts, it is a list of such objects.
        """
        deadline = self._deadline()
        asked = _parse(ManyTasksRequest, await self._read(request, deadline))
        function, names = asked.function, dict.fromkeys(asked.tasks)
        infos = [self._known(name) for name in names if name != "*"]
        if "*" in names:
            infos = [self._known(name) for name in sorted(self.bank)]
        if not infos:
            refuse(404, "The server has no tasks.")
        request.state.logged = {"tasks": len(infos)}
        known = {info.pairs for info in infos}
        pairs = known.pop() if len(known) == 1 else None
        texts = asked.texts(pairs)
        if (count := len(texts) * len(infos)) > self.settings.queue:
            refuse(
                413,
                f"The request asks {len(infos):,} tasks about {len(texts):,} texts; at most "
                f"{self.settings.queue:,} answers are allowed, and these are {count:,}. Send "
                "several requests.",
            )
        job = _job(infos, texts, asked)
        answers = await self._answers(infos, job, request, deadline)
        each = iter(answers)
        found = [
            {info.name: _ranked(next(each), function)[: asked.top_k] for info in infos}
            for _ in texts
        ]
        body = found[0] if asked.is_flat(pairs) else found
        return JSONResponse(body, headers=_truncated(answers))

    async def moderate(self, request: Request) -> Response:
        """Return the categories of texts, in the form of OpenAI's moderation API.

        `model` is a task, and its labels are the categories. A text is flagged if it has a label
        other than those that the server was told are harmless (`--harmless`).
        """
        deadline = self._deadline()
        asked = _parse(ModerationRequest, await self._read(request, deadline))
        info = self._known(asked.model)
        request.state.logged = {"task": info.name}
        if info.labels_.is_regression:
            refuse(422, "The task predicts a number, so it has no categories.")
        job = Job([(info.name, text) for text in asked.texts()])
        answers = await self._answers([info], job, request, deadline)
        results = [_moderated(answer, self.settings.harmless or ()) for answer in answers]
        body = {"id": f"modr-{uuid.uuid4().hex}", "model": info.name, "results": results}
        return JSONResponse(body, headers=_truncated(answers))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.settings.timeout

    def _known(self, task: str) -> TaskInfo:
        try:
            return self.bank.task(task)
        except PtuneError:
            _refuse_task(task)

    async def _answers(
        self, infos: list[TaskInfo], job: Job, request: Request, deadline: float
    ) -> list[Answer]:
        """The answers to a job that has each text for all tasks."""
        texts = [text for _, text in job.requests[:: len(infos)]]
        self._check_texts(texts)
        request.state.logged["texts"] = len(texts)
        answers = await self._classify(infos, job, deadline)
        for (info, logits, _), (name, text) in zip(answers, job.requests, strict=True):
            own = f"{name}: " if len(infos) > 1 else ""
            if info.pairs is not None and isinstance(text, str) is info.pairs:
                differ = MIXED if {False, True} <= {i.pairs for i in infos} else ""
                refuse(422, differ or own + (PAIRS if info.pairs else NO_PAIRS))
            if not np.isfinite(logits).all():
                refuse(424, f"{own}The task's scores are NaN or infinite: its adapter is damaged.")
        for info in infos:
            self.batcher.metrics.texts.labels(info.name).inc(len(texts))
        return answers

    async def _read(self, request: Request, deadline: float) -> bytes:
        """The body of a request."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            refuse(415, "The body must be JSON, with Content-Type: application/json.")
        if (packed := request.headers.get("content-encoding", "identity")) != "identity":
            refuse(415, f"The body has the Content-Encoding {packed!r}. Send it as it is.")
        too_large = f"The body is larger than {self.settings.max_body:,} bytes."
        # h11 accepts only digits.
        if int(request.headers.get("content-length", 0)) > self.settings.max_body:
            refuse(413, too_large)
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.settings.max_body:
                        refuse(413, too_large)
        except TimeoutError:
            refuse(
                408,
                f"The body did not arrive within {self.settings.timeout:g} seconds.",
                headers={"Connection": "close"},
            )
        return bytes(body)

    def _check_texts(self, texts: list[Text]) -> None:
        if len(texts) > self.settings.max_texts:
            refuse(
                413,
                f"The request contains {len(texts):,} texts; at most {self.settings.max_texts:,} "
                "are allowed. Send several requests.",
            )
        for i, text in enumerate(texts, start=1):
            parts = [text] if isinstance(text, str) else text
            if not all(part.strip() for part in parts):
                refuse(422, f"Text {i} is empty.")
            if (size := sum(map(len, parts))) > self.settings.max_chars:
                refuse(
                    413,
                    f"Text {i} has {size:,} characters; at most {self.settings.max_chars:,} are "
                    "allowed.",
                )

    async def _classify(self, infos: list[TaskInfo], job: Job, deadline: float) -> list[Answer]:
        """The answers of a job, or the reason why there are none."""
        try:
            self.batcher.submit(job)
            async with asyncio.timeout_at(deadline):
                return await self.deliveries.answers(job)
        except queue.Full:
            refuse(
                429,
                f"{self.settings.queue:,} texts are waiting already. Try again later.",
                headers=RETRY_AFTER,
            )
        except TimeoutError:
            refuse(
                503,
                f"There was no answer within {self.settings.timeout:g} seconds.",
                error_type="timeout",
                headers=RETRY_AFTER,
            )
        except TooLong as error:
            refuse(
                413, f"A text is {error} tokens longer than the task reads, and truncate is false."
            )
        except PtuneError as error:
            for info in infos:
                if self._known(info.name) is not info:  # removed and added again in the meantime
                    _refuse_task(info.name)
            refuse(422, str(error))

    # Tasks.

    def list_tasks(self) -> list[Task]:
        """List all tasks."""
        found = []
        for name in self.bank:
            try:
                found.append(_task(self.bank.task(name)))
            except PtuneError:  # removed in the meantime
                continue
        return sorted(found, key=lambda task: task.name)

    def get_task(self, task: TaskName) -> Task:
        """Describe one task."""
        return _task(self._known(task))

    def put_task(self, task: TaskName, response: Response) -> Task:
        """Add the adapter in the subfolder of that name, or read it again."""
        try:
            folder = task_folder(self.settings.folder, task)
            if not folder.is_dir():
                refuse(404, "The served folder has no subfolder of that name.")
            is_new = task not in self.bank
            self.bank.add(task, folder, replace=True)
            info = self.bank.task(task)
        except PtuneError as error:
            refuse(422, str(error))
        response.status_code = 201 if is_new else 200
        log.info("task added" if is_new else "task replaced", extra={"task": task})
        return _task(info)

    def delete_task(self, task: TaskName) -> None:
        """Stop serving a task. Its files are kept."""
        try:
            self.bank.remove(task)
        except PtuneError:
            _refuse_task(task)
        log.info("task removed", extra={"task": task})

    # The server itself.

    async def health(self) -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Report that the server accepts requests."""
        return {"status": "ready"}

    def metrics(self) -> Response:
        """Return numbers for Prometheus."""
        numbers = generate_latest(self.batcher.metrics.registry)
        return Response(numbers, media_type=CONTENT_TYPE_LATEST)

    async def page(self) -> Response:
        """Return the web page."""
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)


def _job(infos: list[TaskInfo], texts: list[Text], asked: PredictRequest) -> Job:
    """Each text for all tasks."""
    requests = [(info.name, text) for text in texts for info in infos]
    return Job(requests, may_cut=asked.truncate is not False, side=asked.truncation_side)


async def _check_open(request: Request) -> None:
    if request.app.state.stopping:
        refuse(503, "The server is stopping. Use another one.", headers=RETRY_AFTER)


def _refuse_token(error: str) -> None:
    refuse(401, error, headers={"WWW-Authenticate": "Bearer"})


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body that the route reads itself, for the API's description."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})  # OpenAPI has no place for them
    text = json.dumps(schema)
    for name, part in parts.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    content = {"application/json": {"schema": json.loads(text)}}
    return {"requestBody": {"required": True, "content": content}}


def _parse(model: type[Asked], body: bytes) -> Asked:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        # A field that is missing may be there under another name, which tells more.
        unknown = (e for e in found if e["type"] == "extra_forbidden" and len(e["loc"]) == 1)
        first = next(unknown, found[0])
        if first["type"] == "json_invalid":
            refuse(400, _wrong_encoding(body) or f"{first['msg']}.")
        refuse(422, describe_invalid(model, first))


def _wrong_encoding(body: bytes) -> str | None:
    """What is wrong with the encoding of a body that is no JSON; ``None``: nothing."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "The body is not UTF-8. Send JSON in UTF-8."
    if text.startswith("\ufeff"):
        return "The body begins with a byte-order mark. Leave it out."
    return None


def _truncated(answers: Sequence[Answer]) -> dict[str, str]:
    """A header with the number of answers to texts that were too long; clients' forms have none."""
    count = sum(answer.prediction.truncated for answer in answers)
    return {"X-Truncated-Texts": str(count)} if count else {}


def _ranked(answer: Answer, function: str | None) -> list[dict[str, Any]]:
    """Labels and scores of one text, highest first."""
    task, logits, prediction = answer
    if function is None:
        scores = task.labels_.by_name(prediction).probabilities
    else:
        turn = {"none": np.asarray, "softmax": special.softmax, "sigmoid": special.expit}[function]
        values = logits if function == "none" else task.postprocessing.calibrated(logits)
        values = turn(task.labels_.merged(values))
        scores = dict(zip(task.labels, values.tolist(), strict=True))
    return [{"label": n, "score": s} for n, s in sorted(scores.items(), key=lambda p: -p[1])]


def _moderated(answer: Answer, harmless: Sequence[str]) -> dict[str, Any]:
    """The answer of OpenAI's moderation API for one text."""
    task = answer.task
    found = task.labels_.by_name(answer.prediction)
    chosen = found.label if isinstance(found.label, list) else [found.label]
    return {
        "flagged": any(label not in harmless for label in chosen),
        "categories": {label: label in chosen for label in task.labels},
        "category_scores": found.probabilities,
        "category_applied_input_types": {label: ["text"] for label in task.labels},
    }


def _task(info: TaskInfo) -> Task:
    return Task.model_validate(info, from_attributes=True)
