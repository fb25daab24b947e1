"""Embeddings, reranking and classification: convert request bodies to rows and results to responses."""

import asyncio
import base64
import re
import uuid
from typing import Any

import numpy as np

from ..errors import InputError, MlxQwen3Error
from .errors import ApiError, invalid
from .jobs import TaskJob
from .prompts import is_ids
from .schemas import ClassifyBody, EmbeddingBody, RerankBody

MOST_ROWS = 16384
"""Maximum number of rows per request."""

_ROW = re.compile(r"row (\d+): ")


async def _run_rows(
    api: Any, request: Any, task: Any, rows: list[Any], options: Any, field: str
) -> tuple[list[Any], int]:
    """Run rows through a task; return their results and their number of tokens."""
    if len(rows) > MOST_ROWS:
        raise invalid(field, f"too many rows: {len(rows):,}. Send at most {MOST_ROWS:,} per request.")
    pieces = None
    try:
        if not task.needs_model:
            pieces = await asyncio.to_thread(task.pieces, rows, options)
    except MlxQwen3Error as error:
        raise _name_field(error, field) from None
    job = TaskJob(task, options, rows, pieces)
    try:
        results = await api.run_task(request, job)
    except ApiError as error:
        raise _name_field(error, field) if error.status == 400 else error from None
    tokens = sum(len(piece.ids) for found in job.pieces or [] for piece in found)
    api.metrics.prompt_tokens.inc(tokens)
    return results, tokens


def _name_field(error: Exception, field: str) -> ApiError:
    """Return the error of a row, with the name of the request's field for the number of the row."""
    text = str(error)
    found = _ROW.match(text)
    name = f"{field}[{found[1]}]" if found else field
    return ApiError(400, f"{name}: {text[found.end() :] if found else text}.", name)


async def embed(api: Any, request: Any, body: EmbeddingBody) -> dict[str, Any]:
    """Return one vector per text or list of token ids, in the shape of the OpenAI API."""
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
        task.check_dimensions(options)
    except InputError as error:
        raise ApiError(400, str(error), "dimensions") from None
    vectors, tokens = await _run_rows(api, request, task, rows, options, "input")
    return await asyncio.to_thread(_make_embedding_response, served.name, vectors, tokens, body.encoding_format)


def _make_embedding_response(name: str, vectors: list[Any], tokens: int, encoding: str | None) -> dict[str, Any]:
    def encode(vector: np.ndarray) -> Any:
        if encoding == "base64":
            return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
        return vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)]
    return {
        "object": "list",
        "model": name,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


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
        try:
            options = task.options(candidate_labels=body.labels, multi_label=bool(body.multi_label))
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
