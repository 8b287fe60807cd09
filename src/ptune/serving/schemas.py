"""What clients send and receive.

`PredictRequest` takes what clients of text-embeddings-inference (TEI) and of the Hugging Face
inference API send. `ModerationRequest` takes what clients of OpenAI's moderation API send.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field

from ptune.texts import Text

STRICT = ConfigDict(extra="forbid", strict=True)

# The schema rules out texts of spaces only. The application checks it, with a better message.
_Text = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
_Texts = Annotated[list[_Text], Field(min_length=1)]
_Row = Annotated[list[_Text], Field(min_length=1, max_length=2)]

PAIRS = (
    'The task was trained on pairs of texts. Send ["a", "b"] for one pair, or '
    '[["a", "b"], …] for several.'
)
NO_PAIRS = (
    "The task was trained on single texts, and inputs contains a pair. Send "
    '["a", "b"] for two texts.'
)
MIXED = (
    "Some of these tasks were trained on pairs of texts, and others on single texts. Name tasks of "
    "one kind in tasks, and ask the others in another request."
)
EITHER = (
    "Whether the task was trained on pairs is not recorded, or the tasks differ, so inputs "
    'could be two texts or one pair. Send [["a"], ["b"]] for two texts, or [["a", "b"]] for a pair.'
)


class Parameters(BaseModel):
    """Parameters of the Hugging Face inference API."""

    model_config = STRICT

    top_k: Annotated[
        int | None, Field(ge=1, description="Return only the K highest scores. Default: all.")
    ] = None
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        Field(
            description="Turns logits into scores; softmax and sigmoid take calibrated logits. "
            "Default: what suits the task."
        ),
    ] = None


class PredictRequest(BaseModel):
    """Texts to classify."""

    model_config = STRICT

    inputs: Annotated[
        _Text | _Texts | Annotated[list[_Row], Field(min_length=1)],
        Field(
            description="A text; a list of texts; a pair of texts, for a task that was trained on "
            "pairs; or a list of rows with one or two texts.",
            examples=["where is my parcel?", ["a", "b"], [["It rains.", "Rain falls."]]],
        ),
    ]
    parameters: Parameters | None = None
    options: Annotated[
        dict[str, Any] | None,
        Field(description="Sent by clients of the Hugging Face inference API. Has no effect."),
    ] = None
    raw_scores: Annotated[bool, Field(description="Return logits, highest first.")] = False
    truncate: Annotated[
        bool | None,
        Field(description="False: refuse texts that are too long. Otherwise they are cut."),
    ] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None,
        Field(description="Side on which texts are cut. Default: the tokenizer's."),
    ] = None

    def texts(self, pairs: bool | None) -> list[Text]:
        """Every text or pair.

        Args:
            pairs: Whether the task was trained on pairs; ``None``: unknown.
        """
        if isinstance(self.inputs, str):
            return [self.inputs]
        rows: list[Any] = [[row] if isinstance(row, str) else row for row in self.inputs]
        if isinstance(self.inputs[0], str) and len(rows) == 2:
            if pairs is None:
                refuse(422, EITHER)
            if pairs:
                return [(rows[0][0], rows[1][0])]
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    def is_flat(self, pairs: bool | None) -> bool:
        """True if the answer is one list of labels; otherwise it is a list of such lists.

        Args:
            pairs: As for `texts`.
        """
        if self.parameters is not None:
            return False
        return isinstance(self.inputs, str) or (isinstance(self.inputs[0], str) and pairs is True)

    @property
    def function(self) -> str | None:
        """Turns logits into scores: `softmax`, `sigmoid`, `none`, or ``None`` for the default."""
        function = self.parameters.function_to_apply if self.parameters else None
        if self.raw_scores and function not in (None, "none"):
            refuse(422, f"raw_scores returns logits, but function_to_apply is {function!r}.")
        return "none" if self.raw_scores else function

    @property
    def top_k(self) -> int | None:
        """Number of labels to return; ``None``: all."""
        return self.parameters.top_k if self.parameters else None

    @property
    def truncation_side(self) -> str | None:
        """`left` or `right`; ``None``: the tokenizer's."""
        return self.truncation_direction and self.truncation_direction.lower()


class ManyTasksRequest(PredictRequest):
    """Texts to classify, and several tasks that classify each of them."""

    tasks: Annotated[
        list[str],
        Field(min_length=1, description='Names of tasks, or ["*"] for all.', examples=[["*"]]),
    ]


class LabelScore(BaseModel):
    """A label with its probability; for regression, the number."""

    label: str
    score: float


class TextPart(BaseModel):
    """A part of an input for OpenAI's moderation API."""

    model_config = STRICT

    type: Literal["text"]
    text: _Text


class ModerationRequest(BaseModel):
    """A request of OpenAI's moderation API."""

    model_config = STRICT

    model: Annotated[str, Field(description="Name of a task.")]
    input: Annotated[
        _Text | _Texts | Annotated[list[TextPart], Field(min_length=1)],
        Field(description="A text, a list of texts, or the parts of one text."),
    ]

    def texts(self) -> list[Text]:
        """Every text."""
        if isinstance(self.input, str):
            return [self.input]
        parts = [part.text for part in self.input if isinstance(part, TextPart)]
        return ["\n".join(parts)] if parts else [t for t in self.input if isinstance(t, str)]


class ModerationResult(BaseModel):
    """The answer for one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(BaseModel):
    """An answer of OpenAI's moderation API."""

    id: str
    model: str
    results: list[ModerationResult]


class Task(BaseModel):
    """A task of the server."""

    name: str
    labels: list[str]
    problem_type: str
    pairs: Annotated[bool | None, Field(description="Expects pairs of texts; null: unknown.")]
    num_virtual_tokens: int
    depth: str
    thresholds: Annotated[
        list[float] | None,
        Field(
            description="If a text can have several labels: the probability above which it has "
            "each of them. null: one half."
        ),
    ]


class ErrorBody(BaseModel):
    """An error: a sentence, and a word for programs."""

    error: str
    error_type: str


# The `error_type` of each status, unless a more precise one is given.
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
# Seconds after which a refused client may try again.
RETRY_AFTER = {"Retry-After": "1"}


def error_body(status: int, error: str, error_type: str | None = None) -> dict[str, str]:
    """An error as clients get it; see `ErrorBody`."""
    return {"error": error, "error_type": error_type or ERROR_TYPES[status]}


def refuse(
    status: int, error: str, *, error_type: str | None = None, headers: dict[str, str] | None = None
) -> NoReturn:
    """End the request with an error."""
    raise HTTPException(status, error_body(status, error, error_type), headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, for the API's description."""
    return {status: {"model": ErrorBody} for status in statuses}


_EXPECTED = {
    "inputs": 'inputs must be a text, a list of texts, a pair of texts, or rows [["a"], ["b", '
    '"c"], …] with one or two texts.',
    "tasks": 'tasks must be a list of names of tasks, or ["*"] for all of them.',
    "input": 'input must be a text, a list of texts, or parts {"type": "text", "text": "…"}. '
    "Images cannot be classified.",
}


def describe_invalid(model: type[BaseModel], error: Any) -> str:
    """What is wrong with a request, without quoting its texts."""
    path = [str(part)[:80] for part in error["loc"]]
    if not path:
        fields = [name for name, field in model.model_fields.items() if field.is_required()]
        return f"The body must be an object with the field {' and '.join(fields)}."
    if error["type"] == "extra_forbidden":
        owner = model if len(path) == 1 else Parameters
        return f"There is no field {'.'.join(path)!r}. Use {', '.join(owner.model_fields)}."
    if path[0] in _EXPECTED:
        missing = f"The body lacks {path[0]}: " if error["type"] == "missing" else ""
        return missing + _EXPECTED[path[0]]
    if error["type"] == "missing":
        return f"The body lacks {'.'.join(path)}."
    return f"{'.'.join(path)}: {error['msg']}."
