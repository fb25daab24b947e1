"""Embeddings, reranking and classification: convert request bodies to rows and results to responses."""

import asyncio
import base64
import re
import uuid
from typing import Any

import numpy as np

from ..errors import InputError, MlxQwen3Error
from .errors import ApiError, invalid
from .guard import json_bytes
from .jobs import TaskJob
from .prompts import check_length, is_ids
from .schemas import ClassifyBody, EmbeddingBody, RerankBody

MOST_ROWS = 16384
"""Maximum number of rows per request."""

MOST_TOKENS = 1 << 23
"""Maximum number of tokens of all rows of a request."""

ENCODED_AT_ONCE = 1 << 22
"""Maximum number of characters that are encoded before their tokens are counted."""

MOST_VALUES = 1 << 24
"""Maximum number of values of all vectors of a response."""

MOST_LABEL_TOKENS = 4096
"""Maximum number of tokens of all labels of a request."""

FEW_LABEL_TOKENS = 128
"""Number of label tokens up to which the size of a batch depends on the texts only."""

LABEL_TOKENS_AT_ONCE = 1 << 15
"""Maximum number of label tokens, summed over the rows, per pass."""

MOST_SCORES = 1 << 20
"""Maximum number of scores of a response: rows times labels."""

_ROW = re.compile(r"row (\d+): ")


async def _run_rows(
    api: Any, request: Any, task: Any, rows: list[Any], options: Any, field: str
) -> tuple[list[Any], int]:
    """Run rows through a task; return their results and their number of tokens."""
    if len(rows) > MOST_ROWS:
        raise invalid(field, f"too many rows: {len(rows):,}. Send at most {MOST_ROWS:,} per request.")
    pieces = await asyncio.to_thread(_encode_rows, task, rows, options, field)
    job = TaskJob(task, options, rows, pieces)
    try:
        results = await api.run_task(request, job)
    except ApiError as error:
        raise _name_field(error, field) if error.status == 400 else error from None
    tokens = sum(len(piece.ids) for found in pieces for piece in found)
    api.metrics.prompt_tokens.inc(tokens)
    return results, tokens


def _encode_rows(task: Any, rows: list[Any], options: Any, field: str) -> list[Any]:
    """Return the pieces of each row.

    Raises:
        ApiError: 400 for an invalid row, or more than `MOST_TOKENS` tokens.
    """
    pieces: list[Any] = []
    tokens = start = 0
    while start < len(rows):
        end = start + 1
        size = _row_size(rows[start])
        while end < len(rows) and size + _row_size(rows[end]) <= ENCODED_AT_ONCE:
            size += _row_size(rows[end])
            end += 1
        try:
            found = task.pieces(rows[start:end], options)
        except MlxQwen3Error as error:
            raise _name_field(error, field, start) from None
        tokens += sum(len(piece.ids) for row in found for piece in row)
        if tokens > MOST_TOKENS:
            raise invalid(
                field,
                f"too many tokens: more than {MOST_TOKENS:,} in the first {end:,} of {len(rows):,} rows. "
                "Send fewer rows per request.",
            )
        pieces += found
        start = end
    return pieces


def _row_size(row: Any) -> int:
    """Return the number of characters or token ids of a text, a pair of texts, or a list of ids."""
    return sum(map(len, row)) if isinstance(row, tuple) else len(row)


def _name_field(error: Exception, field: str, start: int = 0) -> ApiError:
    """Return the error of a row, with the request's field for the number of the row, which is counted from `start`."""
    text = str(error)
    found = _ROW.match(text)
    name = f"{field}[{start + int(found[1])}]" if found else field
    problem = text[found.end() :] if found else text
    return ApiError(400, f"{name}: {problem}", name)


async def embed(api: Any, request: Any, body: EmbeddingBody) -> bytes:
    """Return the JSON of one vector per text or list of token ids, in the shape of the OpenAI API."""
    served = api.models.find(body.model, "embeddings")
    task = served.tasks["embeddings"]
    rows = _parse_inputs(body.input)
    try:
        options = task.options(
            **{
                name: value
                for name, value in (("dimensions", body.dimensions), ("instruction", body.instruction))
                if value is not None
            }
        )
    except InputError as error:
        raise ApiError(400, str(error), "instruction" if "instruction" in str(error) else "dimensions") from None
    try:
        width = task.check_dimensions(options)
    except InputError as error:
        raise ApiError(400, str(error), "dimensions") from None
    most = MOST_VALUES // width
    if len(rows) > most:
        raise invalid("input", f"too many rows of {width:,} dimensions: {len(rows):,}. Send at most {most:,}.")
    for index, row in enumerate(rows):
        if isinstance(row, str):
            check_length(served, row, f"input[{index}]")
    vectors, tokens = await _run_rows(api, request, task, rows, options, "input")
    return await asyncio.to_thread(_embedding_response, served.name, vectors, tokens, body.encoding_format)


def _embedding_response(name: str, vectors: list[Any], tokens: int, encoding: str | None) -> bytes:
    """Return the JSON of the response. Vectors are encoded one by one, since Python numbers take four times as much."""

    def encode(index: int, vector: np.ndarray) -> bytes:
        shown: Any = vector.tolist()
        if encoding == "base64":
            shown = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
        return json_bytes({"object": "embedding", "index": index, "embedding": shown})

    data = b",".join(encode(index, vector) for index, vector in enumerate(vectors))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = json_bytes({"object": "list", "model": name, "usage": usage})
    return b'%b,"data":[%b]}' % (head[:-1], data)


def _parse_inputs(value: Any) -> list[Any]:
    """Return the rows of an embedding request: strings, or lists of token ids."""
    rows = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(rows, list) or not rows:
        raise invalid("input", "it is neither a string, nor token ids, nor a list of those. Send a string.")
    kind = str if isinstance(rows[0], str) else list
    for index, row in enumerate(rows):
        right = isinstance(row, str) if kind is str else is_ids(row)
        if not right:
            raise invalid(
                f"input[{index}]",
                "it is empty, or of another type than the first. Send only strings, or only token ids.",
            )
    return rows


async def rerank(api: Any, request: Any, body: RerankBody) -> dict[str, Any]:
    """Return the documents sorted by score, in the shape of the Cohere and Jina APIs."""
    served = api.models.find(body.model, "rerank")
    documents = [_parse_document(document, f"documents[{index}]") for index, document in enumerate(body.documents)]
    if not body.query.strip():
        raise invalid("query", "it is empty. Send a string.")
    task = served.tasks["rerank"]
    try:
        options = task.options(**({"instruction": body.instruction} if body.instruction is not None else {}))
    except InputError as error:
        raise ApiError(400, str(error), "instruction") from None
    scores, tokens = [], 0
    if documents:
        pairs = [(body.query, text) for text in documents]
        scores, tokens = await _run_rows(api, request, task, pairs, options, "documents")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    return {
        "id": uuid.uuid4().hex,
        "object": "list",
        "model": served.name,
        "results": results,
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _parse_document(document: Any, where: str) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str) or not text.strip():
        raise invalid(where, "it has no text. Send a string, or an object with 'text'.")
    return text


def _count_label_tokens(served: Any, labels: list[str]) -> int:
    """Return the number of tokens of all labels.

    Raises:
        ApiError: 400 if they are too many, or leave no room for a text.
    """
    most = min(MOST_LABEL_TOKENS, served.context // 2)
    for index, label in enumerate(labels):
        check_length(served, label, f"labels[{index}]")
    count = sum(map(len, served.tokenizer(labels, add_special_tokens=False)["input_ids"]))
    if count > most:
        raise invalid(
            "labels", f"they have {count:,} tokens, more than the limit of {most:,}. Send fewer or shorter ones."
        )
    return count


async def classify(api: Any, request: Any, body: ClassifyBody) -> dict[str, Any]:
    """Return the labels of each text with their scores, best first."""
    rows = [body.input] if isinstance(body.input, str) else body.input
    if body.labels is None:
        served = api.models.find(body.model, "classify")
        if body.multi_label is not None:
            raise invalid("multi_label", "it requires labels. Send labels, or omit it.")
        task = served.tasks["classify"]
        options = task.options(top_k=None)
    else:
        served = api.models.find(body.model, "labels")
        task = served.tasks["labels"]
        if len(rows) * len(body.labels) > MOST_SCORES:
            raise invalid(
                "labels",
                f"{len(body.labels):,} labels for each of {len(rows):,} texts are more than {MOST_SCORES:,} scores. "
                "Send fewer per request.",
            )
        count = await asyncio.to_thread(_count_label_tokens, served, body.labels)
        try:
            options = task.options(
                candidate_labels=body.labels,
                multi_label=bool(body.multi_label),
                batch_size=None if count <= FEW_LABEL_TOKENS else max(1, LABEL_TOKENS_AT_ONCE // count),
            )
        except InputError as error:
            raise ApiError(400, f"labels: {error}", "labels") from None
    found, tokens = await _run_rows(api, request, task, rows, options, "input")
    results = []
    for index, result in enumerate(found):
        if isinstance(result, dict):
            pairs = zip(result["labels"], result["scores"], strict=True)
            result = [{"label": label, "score": score} for label, score in pairs]
        labels = [{"label": one["label"], "score": float(one["score"])} for one in result]
        best = labels[0]
        results.append({"index": index, "label": best["label"], "score": best["score"], "labels": labels})
    return {
        "id": uuid.uuid4().hex,
        "object": "list",
        "model": served.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
