"""What clients send and receive. The shapes are those of text-embeddings-inference."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field

from ptune.texts import Text

# The schema rules out texts of spaces only. The application checks it, with a better message.
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
        bool, Field(description="Return logits instead of probabilities, highest first.")
    ] = False
    truncate: Annotated[
        bool | None,
        Field(description="False: refuse texts that are too long. Otherwise they are cut."),
    ] = None

    def texts(self) -> list[Text]:
        """Every text or pair."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        rows = [self.inputs] if isinstance(self.inputs[0], str) else self.inputs
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    @property
    def is_batch(self) -> bool:
        """True if the answer is a list with one list per text."""
        return not isinstance(self.inputs, str) and not isinstance(self.inputs[0], str)


class LabelScore(BaseModel):
    """A label with its probability; for regression, the number."""

    label: str
    score: float


class Task(BaseModel):
    """A task of the server."""

    name: str
    labels: list[str]
    problem_type: str
    pairs: Annotated[bool | None, Field(description="Expects pairs of texts; null: unknown.")]
    num_virtual_tokens: int
    depth: str


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


def refuse(
    status: int, error: str, *, error_type: str | None = None, headers: dict[str, str] | None = None
) -> NoReturn:
    """End the request with an error."""
    body = ErrorBody(error=error, error_type=error_type or ERROR_TYPES[status])
    raise HTTPException(status, body.model_dump(), headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, for the API's description."""
    return {status: {"model": ErrorBody} for status in statuses}


def describe_invalid(error: Any) -> str:
    """What is wrong with a request, without quoting its texts."""
    field = error["loc"][0] if error["loc"] else None
    if field == "inputs" and error["type"] != "missing":
        return (
            "inputs must be a text, a pair of texts [a, b], or a batch [[text], [a, b], …] whose "
            "rows have one or two texts. A flat list is one text or one pair."
        )
    if field is None:
        return "The body must be an object with the field inputs."
    if error["type"] == "extra_forbidden":
        return f"There is no field {str(field)[:80]!r}. Use inputs, raw_scores and truncate."
    return f"{str(field)[:80]}: {error['msg']}."
