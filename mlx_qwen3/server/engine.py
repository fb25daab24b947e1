"""The engine: one thread that owns the models and every MLX array, and interleaves all work.

Each round computes one token per running sequence, then a chunk of a waiting prompt and some of the waiting embedding,
reranking and classification rows. The time of both is limited while sequences are running.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..cache import PrefixCache
from ..errors import DistributedError, MlxQwen3Error
from ..generation.context import tokens_left
from ..memory import machine_memory, release_memory
from .batch import Row
from .decoder import Decoder, Pace, Prompt
from .divided import DividedPasses, DividedTask, Leader
from .errors import ApiError, internal_error
from .jobs import Job, TaskJob, TextJob
from .passes import Passes
from .settings import ServerSettings
from .task_rows import next_rows

logger = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.03
"""Minimum seconds for other work between two tokens of running streams; see `Engine._pause`."""

PAUSE_STEPS = 2.0
"""Seconds for other work as a multiple of a decoding step, if that is longer than `SHORTEST_PAUSE`."""

LONGEST_PAUSE = 0.25
"""Maximum seconds for prompts between two tokens when more prompts wait than streams run."""

FEW_STREAMS = 8
"""Number of running sequences up to which every token is delivered immediately."""

DELIVERY_SECONDS = 0.015
"""Seconds between deliveries with more sequences, because delivering a token costs as much as computing it."""

GATHERING = 0.003
"""Seconds to wait for the rows of further requests while nothing else runs, to compute them in one batch."""

LONGEST_GATHERING = 0.02
"""Maximum seconds that a request waits for others whose prompts are being prepared, to compute all in one pass."""

CACHE_SHARE = 0.9
"""Share of the machine's memory for weights, intermediates and caches."""

BUFFER_SHARE = 8
"""MLX's cache of freed buffers may hold 1 / BUFFER_SHARE of the memory."""

COPIES = 3
"""Bytes of memory per byte of cache: a batch may be half padding, and exists twice while rows join or leave it."""


class Engine:
    """Run requests in a thread. Call `start` once; `submit` and `cancel` may be called from any event loop.

    Args:
        settings: limits of the queue, the batch and the memory.
        load: returns the models; called in the engine's thread.
    """

    def __init__(self, settings: ServerSettings, load: Callable[[], Any]):
        self.settings, self._load = settings, load
        self.models: Any = None
        self.error: BaseException | None = None
        self.ready = threading.Event()
        self.stopping = False
        self.preparing = 0
        """Number of requests whose prompts are being prepared; changed by the event loop only."""
        self.prefixes: list[PrefixCache] = []
        """Caches of earlier prompts, per model; together they hold at most `settings.prefix_bytes`."""
        self.capacity = 0
        self.reserved = 0
        self._condition = threading.Condition()
        self._inbox: list[Job] = []
        self._tasks: list[TaskJob] = []
        self._held: list[TextJob] = []  # waiting for memory
        self._open: dict[Job, int] = {}  # accepted request → number of its unfinished choices
        self._outbox: dict[Job, list[Any]] = {}
        self._decoders: dict[Any, Decoder] = {}
        self._task_pace = Pace()
        self._worked = False
        self._leader: Leader | None = None
        self._urgent = False  # the outbox has a first token, an error or the end of a request
        self._delivered = 0.0
        self._thread = threading.Thread(target=self._run, name="mlx-qwen3-engine", daemon=True)

    # called from other threads

    def start(self) -> None:
        """Start the thread, which first loads the models."""
        self._thread.start()

    @property
    def loaded(self) -> bool:
        """Whether requests are served."""
        return self.models is not None and self.error is None

    def submit(self, *jobs: Job) -> None:
        """Queue the jobs of a request, all or none.

        Raises:
            ApiError: 503 while starting or stopping, 429 if the queue is full, 400 if the request can never fit.
        """
        if self.stopping or not self.loaded:
            raise self.unavailable()
        for job in jobs:
            if isinstance(job, TextJob):
                self._check_fit(job)
        with self._condition:
            queued = sum(not job.cancelled for job in self._open)
            if queued + len(jobs) > self.settings.max_queue:
                message = f"the queue is full: {queued} requests. Try again later."
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": "2"})
            for job in jobs:
                self._open[job] = job.options.choices if isinstance(job, TextJob) else 1
            self._inbox += jobs
            self._condition.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a request at the next token; a finished one is ignored."""
        with self._condition:
            if job in self._open:
                job.cancel()
                self._condition.notify()

    def stop(self) -> None:
        """Refuse new requests; the thread exits once all accepted requests have finished."""
        with self._condition:
            self.stopping = True
            self._condition.notify()

    def abort(self) -> None:
        """Stop immediately and answer all open requests with 503."""
        with self._condition:
            self.stopping = True
            for job in self._open:
                job.cancel()
                with contextlib.suppress(RuntimeError):  # the event loop is closed: the client has gone
                    job.loop.call_soon_threadsafe(job.deliver, [self.unavailable()])
            self._condition.notify()

    def unavailable(self) -> ApiError:
        """Return the error for requests that arrive before the models are loaded or after `stop`."""
        state = "stopping" if self.stopping else "starting"
        return ApiError(503, f"the server is {state}. Try again later.", code=state, headers={"Retry-After": "5"})

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread and return whether it has exited."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def numbers(self) -> dict[str, int]:
        """Return the current numbers of requests, sequences and kept prompts, and the bytes reserved for caches."""
        decoders = list(self._decoders.values())
        running = sum(decoder.running for decoder in decoders)
        return {
            "open_requests": len(self._open),
            "running_sequences": running,
            "waiting_requests": sum(len(decoder.waiting) for decoder in decoders) + len(self._held) + len(self._tasks),
            "reserved_cache_bytes": self.reserved,
            "prefix_cache_entries": sum(map(len, self.prefixes)),
        }

    def _check_fit(self, job: TextJob) -> None:
        """Raise `ApiError` for a request that can never fit into the memory for caches."""
        decoder = self._decoders[job.served]
        needed = self._required_bytes(decoder, job)
        if needed > self.capacity:
            tokens = len(job.prompt) + self._budget(decoder, job)
            choices = f" in {job.options.choices} choices" if job.options.choices > 1 else ""
            raise ApiError(
                400,
                f"the request may need {tokens:,} tokens of cache{choices}: {needed / 1e6:,.1f} MB of at most "
                f"{self.capacity / 1e6:,.1f} MB. Shorten the prompt or lower max_tokens.",
                "max_tokens",
                "insufficient_memory",
            )

    @staticmethod
    def _budget(decoder: Decoder, job: TextJob) -> int:
        return tokens_left(decoder.config, 0, len(job.prompt), job.options.max_tokens)

    def _required_bytes(self, decoder: Decoder, job: TextJob) -> int:
        return decoder.row_bytes(len(job.prompt) + self._budget(decoder, job)) * job.options.choices

    # the engine's thread

    def _run(self) -> None:
        try:
            models = self._load()
            self._set_limits(models)
            for served in models.generating:
                passes = self._make_passes(served, models)
                self._decoders[served] = Decoder(
                    served,
                    self.settings.max_batch,
                    passes,
                    self._post,
                    self._flush,
                    models.cache_options,
                    min(models.nbytes // 2, self.capacity // 4),
                )
            self.models = models
        except BaseException as error:  # noqa: BLE001 - raised again by the caller that waits for `ready`
            self.error = error
            return
        finally:
            self.ready.set()
        while self._receive_jobs():
            try:
                self._run_round()
            except Exception as error:  # the affected requests have received their errors
                if self._leader is not None and isinstance(error, RuntimeError):
                    self._abandon(error)
                    return
                logger.exception("an engine step failed")
            self._flush()
        self._decoders.clear()
        if self._leader is not None:
            self._leader.send("end")

    def _make_passes(self, served: Any, models: Any) -> Passes:
        """Return the forward passes of a model; if it is sharded, the other processes repeat them from now on."""
        # an adapter changes all keys and values, so that each model needs its own prefixes
        prefixes = PrefixCache(self.settings.prefix_bytes // len(models.generating))
        self.prefixes.append(prefixes)
        model, cache_options = served.model.for_inference(), models.cache_options
        if served.model.group is None:
            return Passes(model, cache_options, prefixes)
        self._leader = Leader(served.model.group)
        served.tasks = {ability: DividedTask(task, ability, self._leader) for ability, task in served.tasks.items()}
        return DividedPasses(model, cache_options, prefixes, self._leader)

    def _abandon(self, error: RuntimeError) -> None:
        """Fail all requests: a process has exited, or the processes do not run the same pass."""
        logger.debug("the processes are out of step", exc_info=error)
        self.error = DistributedError(f"the processes are out of step: {error}. Restart all of them.")
        for job in list(self._open):
            self._fail(job, ApiError(503, "a process of the server has exited. Try again later.", code="stopping"))
        self._flush()

    def _set_limits(self, models: Any) -> None:
        """Set the number of bytes of cache that running requests may reserve, and the limit of MLX's buffers."""
        memory = machine_memory()
        mx.set_cache_limit(memory // BUFFER_SHARE)
        if self.settings.cache_bytes is not None:
            self.capacity = self.settings.cache_bytes
            return
        rest = CACHE_SHARE * memory - models.nbytes - models.working_bytes - self.settings.prefix_bytes
        self.capacity = max(int(rest / COPIES), 0)

    def _receive_jobs(self) -> bool:
        """Move new requests to the queues, blocking while there is nothing to do; return False at the end."""
        with self._condition:
            while not (self._inbox or self._busy()):
                if self.stopping and not self._open:
                    return False
                woken = self._condition.wait(0.5 if self._open or self._worked else None)
                if not woken and self._worked and not self._open:
                    self._worked = False  # idle: free the buffers; the next request allocates them again
                    release_memory()
            inbox, self._inbox = self._inbox, []
        if not self._busy():
            inbox += self._gather(inbox)
        self._tasks += [job for job in inbox if isinstance(job, TaskJob)]
        self._held += [job for job in inbox if isinstance(job, TextJob)]
        self._admit()
        return True

    def _gather(self, first: list[Job]) -> list[Job]:
        """Wait briefly for requests that arrive together with the first ones, and return them."""
        began = time.monotonic()
        if not first or began - first[0].created > LONGEST_GATHERING:
            return []
        patience = GATHERING if all(isinstance(job, TaskJob) for job in first) else 0.0
        while self.preparing or time.monotonic() - began < patience:
            if time.monotonic() - began > LONGEST_GATHERING:
                break
            time.sleep(GATHERING / 4)
        with self._condition:
            more, self._inbox = self._inbox, []
        return more

    def _busy(self) -> bool:
        return bool(self._tasks or self._held or any(d.waiting or d.batches for d in self._decoders.values()))

    def _admit(self) -> None:
        """Pass requests to their decoders in order, as long as their caches fit into memory."""
        waiting: list[TextJob] = []
        for job in self._held:
            decoder = self._decoders[job.served]
            needed = self._required_bytes(decoder, job)
            if job.cancelled:
                self._close(job)
            elif waiting or (self.reserved + needed > self.capacity and self.reserved):
                waiting.append(job)
            else:
                self.reserved += needed
                budget = self._budget(decoder, job)
                decoder.add(Prompt(job, budget, needed // job.options.choices))
        self._held = waiting

    def _run_round(self) -> None:
        for decoder in self._decoders.values():
            decoder.step()
        self._flush()
        pause = self._pause()
        for decoder in self._decoders.values():
            if decoder.waiting:
                decoder.prefill(self._prompt_pause(pause))
        if self._tasks:
            self._run_tasks(pause)
        self._worked = True

    def _pause(self) -> float | None:
        """Return the seconds for other work before the next token of running streams; None if no stream is running."""
        running = [decoder for decoder in self._decoders.values() if decoder.running]
        if not running:
            return None
        return max(SHORTEST_PAUSE, PAUSE_STEPS * max(decoder.step_seconds for decoder in running))

    def _prompt_pause(self, pause: float | None) -> float | None:
        """Return the seconds for prompts: more than `pause` if more prompts wait than streams run."""
        if pause is None:
            return None
        running = sum(decoder.running for decoder in self._decoders.values())
        waiting = sum(len(decoder.waiting) for decoder in self._decoders.values())
        return max(pause, min(LONGEST_PAUSE, SHORTEST_PAUSE * waiting / running))

    # tasks

    def _run_tasks(self, pause: float | None) -> None:
        """Compute rows of the requests that share the task and the options of the oldest one."""
        for job in [job for job in self._tasks if job.cancelled]:
            self._tasks.remove(job)
            self._close(job)
        if not self._tasks:
            return
        first = self._tasks[0]
        group = [job for job in self._tasks if job.key == first.key]
        try:
            rows = next_rows(group, self._task_pace.tokens_in(pause, 1 << 20))
            start = time.perf_counter()
            results = first.task.compute([(job.rows[i], job.pieces[i]) for job, i in rows], first.options)
            tokens = sum(len(piece.ids) for job, i in rows for piece in job.pieces[i])
            self._task_pace.add(tokens, time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 - only these requests fail
            for job in group:
                self._tasks.remove(job)
                self._fail(job, error)
            return
        for (job, _), result in zip(rows, results, strict=True):
            job.results.append(result)
        for job in group:
            if len(job.results) == len(job.rows):
                self._tasks.remove(job)
                self._outbox.setdefault(job, []).append(job.results)
                self._close(job)

    # events

    def _post(self, job: TextJob, events: list[Any]) -> None:
        """Queue the events of a job for delivery; a `Row` or `Prompt` among them has left the decoder."""
        self._urgent = self._urgent or job.completion_tokens <= job.options.choices
        for event in events:
            if isinstance(event, Prompt | Row):
                self._release(job, event)
            else:
                self._outbox.setdefault(job, []).append(event)

    def _release(self, job: TextJob, part: Prompt | Row) -> None:
        """Release the memory of a prompt or row that has left the decoder, and close its request after the last one."""
        whole = isinstance(part, Prompt)
        self.reserved -= part.reserved * (job.options.choices if whole else 1)
        failed = whole or part.failed
        with self._condition:
            left = self._open.get(job, 0) - (job.options.choices if whole else 1)
            if job in self._open:
                self._open[job] = left
        if failed and not job.cancelled:
            job.cancel()
            error = None if isinstance(part, Prompt) else part.error
            self._outbox.setdefault(job, []).append(error or internal_error())
        if left <= 0:
            self._close(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        found: ApiError = internal_error()
        if isinstance(error, MlxQwen3Error):
            found = ApiError(400, str(error))
        elif isinstance(error, ApiError):
            found = error
        else:
            logger.error("a request failed", exc_info=error)
        self._outbox.setdefault(job, []).append(found)
        self._close(job)

    def _close(self, job: Job) -> None:
        """Queue the end of a request."""
        with self._condition:
            self._open.pop(job, None)
        self._outbox.setdefault(job, []).append(None)
        self._urgent = True

    def _flush(self) -> None:
        """Deliver the queued events, with one call per event loop."""
        if not self._outbox:
            return
        now = time.monotonic()
        many = sum(decoder.running for decoder in self._decoders.values()) > FEW_STREAMS
        if many and not self._urgent and now - self._delivered < DELIVERY_SECONDS:
            return
        self._delivered, self._urgent = now, False
        outbox, self._outbox = self._outbox, {}
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, list[Any]]]] = {}
        for job, events in outbox.items():
            by_loop.setdefault(job.loop, []).append((job, events))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, deliveries)
            except RuntimeError:  # the loop is closed: the clients have gone
                for job, _ in deliveries:
                    job.cancel()


def _deliver(deliveries: list[tuple[Job, list[Any]]]) -> None:
    for job, events in deliveries:
        job.deliver(events)
