"""The ASGI application: routes, error responses and metrics on top of the engine."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .engine import Engine
from .errors import ApiError, internal_error
from .extract_routes import extract
from .guard import Guard, json_bytes
from .jobs import Delta, Job, TextJob
from .metrics import Metrics
from .models import load_models
from .page import page_response
from .schemas import Body, ChatBody, ClassifyBody, CompletionBody, EmbeddingBody, ExtractBody, RerankBody, parse_body
from .settings import ServerSettings
from .streams import DisconnectedError, EventStream, run_unless_disconnected
from .task_routes import classify, embed, rerank
from .text_routes import ChatRequest, CompletionRequest

logger = logging.getLogger(__name__)

LARGE_BODY = 1 << 16
"""Bytes from which on a body is parsed in a thread."""

T = TypeVar("T", bound=Body)
Handler = Callable[["Api", Request], Awaitable[Any]]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(json_bytes(value), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """Return an error response in the shape of the OpenAI API."""
    return json_response(error.body(), error.status, error.headers)


class Api:
    """The engine, settings and metrics that the routes share, and the operations on them."""

    def __init__(self, settings: ServerSettings, engine: Engine):
        self.settings, self.engine = settings, engine
        self.metrics = Metrics(engine.numbers)

    @property
    def models(self) -> Any:
        """The loaded models.

        Raises:
            ApiError: 503 while the server is starting or stopping.
        """
        if self.engine.stopping or not self.engine.loaded:
            raise self.engine.unavailable()
        return self.engine.models

    async def body(self, request: Request, kind: type[T]) -> T:
        """Read and validate a request's body.

        Raises:
            ApiError: 400 for an invalid body, 503 while the server is starting or stopping.
        """
        self.models  # noqa: B018 - raises 503 before the body is read
        data = await request.body()
        if len(data) > LARGE_BODY:  # so that running streams are not delayed
            return await asyncio.to_thread(parse_body, data, kind)
        return parse_body(data, kind)

    async def prepare(self, kind: Any, body: Any) -> Any:
        """Validate a chat or completion request and encode its prompts, in a worker thread."""
        self.engine.preparing += 1
        try:
            return await asyncio.to_thread(kind.prepare, self.models, self.settings, body)
        finally:
            self.engine.preparing -= 1

    async def run_task(self, request: Request, job: Job) -> Any:
        """Run a job that has a single event and return the event; cancel the job if the client disconnects."""

        async def wait() -> Any:
            found = None
            async for events in job.read():
                found = events[-1]
            return found

        self.engine.submit(job)
        try:
            return await run_unless_disconnected(request.receive, wait())
        finally:
            self.engine.cancel(job)

    async def answer_text(self, request: Request, made: Any, stream: bool, usage: bool) -> Response | EventStream:
        """Return the response to a chat or completion request: the whole answer, or a stream of events."""
        if not stream:
            return json_response(made.whole(await self.gather(request, made.jobs)))
        began = time.monotonic()
        finish = self._submit(made.jobs)
        events = made.shape.events(made.jobs, self._deltas(made.jobs, began), usage)
        return EventStream(events, self.settings.stall_seconds, finish)

    async def gather(self, request: Request, jobs: list[TextJob]) -> list[list[Delta]]:
        """Run jobs and return the deltas of each choice; cancel the jobs if the client disconnects.

        Returns:
            One list of deltas per choice, in the order of the jobs and of their choices.
        """
        began = time.monotonic()
        finish = self._submit(jobs)
        choices: list[list[Delta]] = [[] for _ in range(sum(job.options.choices for job in jobs))]

        async def read() -> None:
            async for found in self._deltas(jobs, began):
                for delta in found:
                    choices[delta.index].append(delta)

        try:
            await run_unless_disconnected(request.receive, read())
        finally:
            finish()
        return choices

    def _submit(self, jobs: list[TextJob]) -> Callable[[], None]:
        """Submit all jobs or none.

        Returns:
            A function to call once at the end: it cancels unfinished jobs and counts the tokens.
        """
        self.engine.submit(*jobs)

        def finish() -> None:
            for job in jobs:
                self.engine.cancel(job)
            self.count_tokens(jobs)

        return finish

    async def _deltas(self, jobs: list[TextJob], began: float) -> AsyncIterator[list[Delta]]:
        """Yield the deltas of all jobs as they arrive; choices are numbered across the jobs."""
        first = True
        if len(jobs) == 1:
            async for found in jobs[0].read():
                if first:
                    self.metrics.first_token.observe(time.monotonic() - began)
                    first = False
                yield found
            return
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def pump(job: TextJob, shift: int) -> None:
            try:
                async for found in job.read():
                    await queue.put([_shift_index(delta, shift) for delta in found])
                await queue.put(None)
            except ApiError as error:
                await queue.put(error)

        shifts = [sum(job.options.choices for job in jobs[:i]) for i in range(len(jobs))]
        pumps = [asyncio.ensure_future(pump(job, shift)) for job, shift in zip(jobs, shifts, strict=True)]
        try:
            unfinished = len(jobs)
            while unfinished:
                found = await queue.get()
                if isinstance(found, ApiError):
                    raise found
                if found is None:
                    unfinished -= 1
                    continue
                yield found
        finally:
            for one in pumps:
                one.cancel()

    def count_tokens(self, jobs: list[TextJob]) -> None:
        """Add the tokens of finished requests to the metrics."""
        for job in jobs:
            self.metrics.prompt_tokens.inc(len(job.prompt))
            self.metrics.cached_tokens.inc(job.cached_tokens)
            self.metrics.completion_tokens.inc(job.completion_tokens)


def _shift_index(delta: Delta, shift: int) -> Delta:
    if not shift:
        return delta
    return Delta(delta.index + shift, delta.kind, delta.text, delta.logprobs, delta.finish_reason, delta.call)


# routes


async def health(api: Api, request: Request) -> Response:
    """Report the state of the server and the load; the status is 503 unless requests are served."""
    status = "stopping" if api.engine.stopping else "ok" if api.engine.loaded else "starting"
    return json_response({"status": status, **api.engine.numbers()}, 200 if status == "ok" else 503)


async def metrics(api: Api, request: Request) -> Response:
    """Return the metrics in Prometheus's text format."""
    return Response(api.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def list_models(api: Api, request: Request) -> Response:
    """List the models."""
    return json_response({"object": "list", "data": [_describe_model(served) for served in api.models.served]})


async def get_model(api: Api, request: Request) -> Response:
    """Describe a model."""
    name = request.path_params["name"]
    for served in api.models.served:
        if served.name == name:
            return json_response(_describe_model(served))
    raise ApiError(404, f"unknown model: {name!r}. GET /v1/models lists the models.", "model", "model_not_found")


def _describe_model(served: Any) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "mlx-qwen3",
        "abilities": served.abilities,
        "thinking": None if served.thinking is None else served.thinking.value,
        "context_length": served.context,
    }


async def chat_completions(api: Api, request: Request) -> Any:
    """Generate the next message of a conversation."""
    body = await api.body(request, ChatBody)
    made = await api.prepare(ChatRequest, body)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return await api.answer_text(request, made.start(), bool(body.stream), usage)


async def completions(api: Api, request: Request) -> Any:
    """Complete one or more prompts."""
    body = await api.body(request, CompletionBody)
    made = await api.prepare(CompletionRequest, body)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return await api.answer_text(request, made.start(), bool(body.stream), usage)


async def embeddings(api: Api, request: Request) -> Response:
    """Embed texts."""
    body = await embed(api, request, await api.body(request, EmbeddingBody))
    return Response(body, media_type="application/json")


async def reranking(api: Api, request: Request) -> Response:
    """Rank documents by their relevance to a query."""
    return json_response(await rerank(api, request, await api.body(request, RerankBody)))


async def classification(api: Api, request: Request) -> Response:
    """Classify texts."""
    return json_response(await classify(api, request, await api.body(request, ClassifyBody)))


async def extraction(api: Api, request: Request) -> Response:
    """Extract values that conform to a JSON schema."""
    return json_response(await extract(api, request, await api.body(request, ExtractBody)))


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", get_model),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/embeddings", embeddings),
    ("POST", "/v1/rerank", reranking),
    ("POST", "/v2/rerank", reranking),
    ("POST", "/rerank", reranking),
    ("POST", "/v1/classify", classification),
    ("POST", "/v1/extract", extraction),
]


def create_app(settings: ServerSettings | None = None, engine: Engine | None = None, **options: Any) -> Any:
    """Return the server as an ASGI application.

    The application's lifespan starts and drains the engine, unless `engine` is given.

    Args:
        settings: see `ServerSettings`.
        engine: an engine that the caller starts and stops; by default a new one.
        **options: fields of `ServerSettings`, as an alternative to `settings`.

    Raises:
        InputError: settings out of range.
    """
    settings = settings or ServerSettings(**options)
    own = engine is None
    engine = engine or Engine(settings, lambda: load_models(settings))
    api = Api(settings, engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if own:
            engine.start()
            await asyncio.to_thread(engine.ready.wait)
            if engine.error is not None:
                raise engine.error
        yield
        if own:
            engine.stop()
            if not await asyncio.to_thread(engine.join, settings.drain_seconds):
                engine.abort()
                await asyncio.to_thread(engine.join, 10.0)

    def endpoint(handler: Handler, path: str) -> Callable[[Request], Awaitable[Any]]:
        async def run(request: Request) -> Any:
            began = time.monotonic()
            try:
                response = await handler(api, request)
            except ApiError as error:
                response = error_response(error)
            except (DisconnectedError, ClientDisconnect):
                response = Response(status_code=499)  # not sent: the client has disconnected
            except Exception:  # a failed request must not stop the server
                logger.exception("%s %s failed", request.method, path)
                response = error_response(internal_error())
            api.metrics.requests.labels(path, str(response.status_code)).inc()
            api.metrics.duration.labels(path).observe(time.monotonic() - began)
            return response

        return run

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"method not allowed on this path: {request.method}. Use {allowed}."
            return error_response(ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed}))
        message = f"unknown path: {request.url.path[:200]!r}. Paths of the API start with /v1."
        return error_response(ApiError(error.status_code, message, code="not_found"))

    routes = [Route(path, endpoint(handler, path), methods=[method]) for method, path, handler in ROUTES]
    routes += [Route("/", page_response), Route("/page/{name}", page_response)]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: not_found})
    app.router.redirect_slashes = False
    app.state.engine = engine
    return Guard(app, settings)
