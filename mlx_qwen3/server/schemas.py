"""Request bodies: their fields, types and ranges.

Types are strict: numbers are not accepted as strings, nor strings as numbers. Unknown fields are ignored, because
clients send many that have no effect, such as `user` or `prompt_cache_key`.
"""

import json
import math
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ApiError, invalid

DEEPEST = 100
"""Maximum nesting depth of a body."""

MOST_STOPS = 256
"""Maximum number of stop strings; every token is compared with all of them."""

SHOWN = 60
"""Maximum characters of an invalid value in an error message."""

WORDS = {"too_short": "a list that is not empty", "dict_type": "an object", "model_type": "an object"}
"""Kind of pydantic's error → what was expected, in the words of JSON."""

Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None


class StreamOptions(BaseModel):
    """`stream_options` of a request."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class Sampled(Body):
    """Fields that chat and text completions share."""

    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, without empty ones."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in texts if text]


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionBody(Sampled):
    """`POST /v1/completions`."""

    prompt: Any = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    input: Any = None
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None
    instruction: str | None = None


class RerankBody(Body):
    """`POST /v1/rerank`, `/v2/rerank` and `/rerank`."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: Count | None = None
    return_documents: bool | None = None
    instruction: str | None = None


class ClassifyBody(Body):
    """`POST /v1/classify`."""

    input: str | Annotated[list[str], Field(min_length=1)]
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    multi_label: bool | None = None


class ExtractBody(Body):
    """`POST /v1/extract`."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), populate_by_name=True)

    input: str | Annotated[list[str], Field(min_length=1)]
    json_schema: Any = Field(alias="schema")
    instruction: str | None = None
    max_tokens: Count | None = None


T = TypeVar("T", bound=Body)


def parse_body(data: bytes, kind: type[T]) -> T:
    """Parse and validate a request's body.

    Raises:
        ApiError: 400 for anything but a JSON object, for NaN, nesting deeper than `DEEPEST`, lone surrogates, or an
            invalid field.
    """
    try:
        value = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}. Send a JSON object.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is a JSON {type(value).__name__}. Send a JSON object.", code="invalid_json")
    _check_depth(value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _describe_invalid(error) from None


def _describe_invalid(error: ValidationError) -> ApiError:
    """Return the error of the first invalid field, with its value."""
    problems = error.errors(include_url=False, include_context=False)
    name = _field_name(problems[0]["loc"])
    if problems[0]["type"] == "missing":
        return invalid(name, "it is missing. Send it.")
    own = [problem for problem in problems if _field_name(problem["loc"]) == name]
    words = [WORDS.get(problem["type"], problem["msg"].removeprefix("Input should be ")) for problem in own]
    expected = list(dict.fromkeys(words))
    shown = json.dumps(own[0]["input"], ensure_ascii=False)
    shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"
    return invalid(name, f"it is {shown}, expected {' or '.join(expected)}. Correct it.")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ApiError(
                400, f"the body is nested deeper than {DEEPEST} levels. Send one with fewer.", code="invalid_json"
            )
        inner: list[Any] = []
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ApiError(
                    400, "the body has a number that is not finite. Send a smaller one.", code="invalid_json"
                )
            inner += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        level = inner


def _field_name(loc: tuple[int | str, ...]) -> str:
    """Return the name of a field as in the request, such as `messages[0]`."""
    name = str(loc[0]) if loc else "body"
    for part in loc[1:]:
        if not isinstance(part, int):
            break
        name += f"[{part}]"
    return name
